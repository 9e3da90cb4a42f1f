"""An OTLP collector made of the public protobuf packages: prints each span as one line of JSON.

    otlp_receiver.py [PORT]     first line: the port it listens on
"""

import concurrent.futures
import json
import sys
import threading

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

WRITING = threading.Lock()


def plain(value):
    """The content of an AnyValue, whatever its type."""
    return getattr(value, value.WhichOneof("value"))


def attributes(pairs):
    return {pair.key: plain(pair.value) for pair in pairs}


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request, context):
        for of_resource in request.resource_spans:
            resource = attributes(of_resource.resource.attributes)
            for of_scope in of_resource.scope_spans:
                for span in of_scope.spans:
                    self.show(resource, of_scope.scope, span)
        return trace_service_pb2.ExportTraceServiceResponse()

    @staticmethod
    def show(resource, scope, span):
        line = json.dumps(
            {
                "resource": resource,
                "scope": scope.name,
                "name": span.name,
                "kind": trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                "trace": span.trace_id.hex(),
                "span": span.span_id.hex(),
                "parent": span.parent_span_id.hex(),
                "begun": span.start_time_unix_nano,
                "ended": span.end_time_unix_nano,
                "status": trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix(
                    "STATUS_CODE_"
                ),
                "attributes": attributes(span.attributes),
                "links": [
                    {"trace": link.trace_id.hex(), "span": link.span_id.hex()}
                    for link in span.links
                ],
            }
        )
        with WRITING:
            print(line, flush=True)


def main():
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), server)
    port = server.add_insecure_port("127.0.0.1:" + (sys.argv[1] if len(sys.argv) > 1 else "0"))
    server.start()
    print(port, flush=True)
    # Ends when whoever started it is gone.
    sys.stdin.read()


main()

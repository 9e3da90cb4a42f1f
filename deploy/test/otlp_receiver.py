"""An OTLP receiver that stands in for Jaeger where its image cannot be had.

It takes traces over OTLP/gRPC on 4317, decodes them with the published `opentelemetry-proto`
package, keeps them in memory, and answers on 16686 to the part of Jaeger's query API that people
use with curl: /api/services and /api/traces/ID, in Jaeger's JSON. 13133 is the health port.
"""

import collections
import http.server
import json
import signal
import sys
import threading
import urllib.parse
from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

TRACES_MAX = 10_000


def value_of(any_value):
    """An attribute's value as JSON has it."""
    kind = any_value.WhichOneof("value")
    if kind is None:
        return None
    value = getattr(any_value, kind)
    if kind == "array_value":
        return [value_of(inner) for inner in value.values]
    if kind == "kvlist_value":
        return {pair.key: value_of(pair.value) for pair in value.values}
    if kind == "bytes_value":
        return value.hex()
    return value


def attributes_of(pairs):
    return {pair.key: value_of(pair.value) for pair in pairs}


def tags_of(attributes):
    kinds = {bool: "bool", int: "int64", float: "float64"}
    return [{"key": key, "type": kinds.get(type(value), "string"), "value": value}
            for key, value in attributes.items()]


def references_of(span):
    references = []
    if span.parent_span_id:
        references.append({"refType": "CHILD_OF", "traceID": span.trace_id.hex(), "spanID": span.parent_span_id.hex()})
    for link in span.links:
        references.append({"refType": "FOLLOWS_FROM", "traceID": link.trace_id.hex(), "spanID": link.span_id.hex()})
    return references


def span_as_json(span, process):
    tags = attributes_of(span.attributes)
    kind = trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower()
    tags["span.kind"] = kind
    if span.status.code == trace_pb2.Status.STATUS_CODE_ERROR:
        tags["error"] = True
    return {
        "traceID": span.trace_id.hex(),
        "spanID": span.span_id.hex(),
        "operationName": span.name,
        "references": references_of(span),
        "startTime": span.start_time_unix_nano // 1000,
        "duration": max(0, span.end_time_unix_nano - span.start_time_unix_nano) // 1000,
        "tags": tags_of(tags),
        "logs": [{"timestamp": event.time_unix_nano // 1000,
                  "fields": tags_of({"event": event.name, **attributes_of(event.attributes)})}
                 for event in span.events],
        "processID": process,
    }


class Traces(trace_service_pb2_grpc.TraceServiceServicer):
    """What has been received; the oldest traces go first."""

    def __init__(self):
        self.lock = threading.Lock()
        self.spans = collections.OrderedDict()
        self.names = set()

    def Export(self, request, context):
        with self.lock:
            for resource_spans in request.resource_spans:
                resource = attributes_of(resource_spans.resource.attributes)
                self.names.add(str(resource.get("service.name", "unknown")))
                for scope_spans in resource_spans.scope_spans:
                    for span in scope_spans.spans:
                        self.spans.setdefault(span.trace_id.hex(), []).append((span, resource))
            while len(self.spans) > TRACES_MAX:
                self.spans.popitem(last=False)
        return trace_service_pb2.ExportTraceServiceResponse()

    def services(self):
        with self.lock:
            return sorted(self.names)

    def trace(self, trace_id):
        """A trace in Jaeger's JSON, or nothing."""
        with self.lock:
            received = list(self.spans.get(trace_id, []))
        if not received:
            return None
        processes, spans = {}, []
        for span, resource in received:
            known = json.dumps(resource, sort_keys=True)
            name = next((name for name, entry in processes.items() if entry[0] == known), None)
            if name is None:
                name = f"p{len(processes) + 1}"
                processes[name] = (known, resource)
            spans.append(span_as_json(span, name))
        return {
            "traceID": trace_id,
            "spans": spans,
            "processes": {name: {"serviceName": str(resource.get("service.name", "unknown")),
                                 "tags": tags_of(resource)}
                          for name, (_, resource) in processes.items()},
            "warnings": None,
        }

    def with_service(self, service, limit):
        with self.lock:
            ids = [trace_id for trace_id, received in reversed(self.spans.items())
                   if any(resource.get("service.name") == service for _, resource in received)]
        return [self.trace(trace_id) for trace_id in ids[:limit]]


class Query(http.server.BaseHTTPRequestHandler):
    """The query API."""

    traces = None
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        parameters = dict(urllib.parse.parse_qsl(url.query))
        parts = [part for part in url.path.split("/") if part]
        if parts == ["status"] or not parts:
            self.answer(200, "An OTLP receiver, standing in for Jaeger.\n", "text/plain")
        elif parts == ["api", "services"]:
            self.found(self.traces.services())
        elif parts == ["api", "traces"] and "service" in parameters:
            self.found(self.traces.with_service(parameters["service"], int(parameters.get("limit", "20"))))
        elif parts[:2] == ["api", "traces"] and len(parts) == 3:
            trace = self.traces.trace(parts[2].lower().rjust(32, "0"))
            if trace:
                self.found([trace])
            else:
                body = {"data": None, "errors": [{"code": 404, "msg": "trace not found"}]}
                self.answer(404, json.dumps(body), "application/json")
        else:
            self.answer(404, "not found\n", "text/plain")

    def found(self, data):
        body = {"data": data, "total": len(data), "limit": 0, "offset": 0, "errors": None}
        self.answer(200, json.dumps(body), "application/json")

    def answer(self, status, text, kind):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main():
    traces = Traces()
    Query.traces = traces
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(traces, server)
    if server.add_insecure_port("0.0.0.0:4317") == 0:
        sys.exit("cannot listen on 4317")
    server.start()
    for port in (13133, 16686):
        listener = http.server.ThreadingHTTPServer(("0.0.0.0", port), Query)
        threading.Thread(target=listener.serve_forever, daemon=True).start()
    print("receiving OTLP on 4317, answering on 16686", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    server.stop(0)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()

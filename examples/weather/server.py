"""The weather service: server.py [HOST:PORT]

A plain grpcio server with reflection: unary calls, a server stream, errors with details of
google.rpc and of its own. It compiles weather.proto when it starts, so there is nothing to build.
"""

import concurrent.futures
import pathlib
import signal
import sys
import tempfile
import threading

import google.api.annotations_pb2  # Registers google.api.http, which weather.proto imports.
import grpc
import grpc_tools
from google.protobuf import any_pb2, timestamp_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from grpc_tools import protoc

HERE = pathlib.Path(__file__).resolve().parent
ABSOLUTE_ZERO = -273.15


def compile_proto():
    """Generates the messages and the service, and imports them."""
    include = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    site = pathlib.Path(google.api.annotations_pb2.__file__).parents[2]
    with tempfile.TemporaryDirectory() as out:
        arguments = ["protoc", f"-I{HERE}", f"-I{include}", f"-I{site}", f"--python_out={out}", f"--grpc_python_out={out}"]
        if protoc.main([*arguments, "weather.proto"]) != 0:
            sys.exit("weather.proto does not compile")
        sys.path.insert(0, out)
        import weather_pb2
        import weather_pb2_grpc
    return weather_pb2, weather_pb2_grpc


weather_pb2, weather_pb2_grpc = compile_proto()


def abort(context, code, message, detail):
    """Ends the call with a status that carries a detail."""
    packed = any_pb2.Any()
    packed.Pack(detail)
    context.abort_with_status(rpc_status.to_status(status_pb2.Status(code=code, message=message, details=[packed])))


class Weather(weather_pb2_grpc.WeatherServicer):
    def __init__(self):
        self.filed = threading.Condition()
        self.reports = []

    def GetReport(self, request, context):
        with self.filed:
            reports = list(self.reports)
        for report in reversed(reports):
            if report.city == request.city:
                return report
        known = weather_pb2.KnownCities(cities=sorted({report.city for report in reports}))
        abort(context, code_pb2.NOT_FOUND, f"nobody has reported from {request.city}", known)

    def FileReport(self, request, context):
        report = request.report
        if report.celsius < ABSOLUTE_ZERO:
            violation = error_details_pb2.BadRequest.FieldViolation(
                field="report.celsius", description=f"nothing is colder than {ABSOLUTE_ZERO}")
            detail = error_details_pb2.BadRequest(field_violations=[violation])
            abort(context, code_pb2.INVALID_ARGUMENT, "no such temperature", detail)
        if not report.HasField("at"):
            report.at.CopyFrom(timestamp_pb2.Timestamp())
            report.at.GetCurrentTime()
        with self.filed:
            self.reports.append(report)
            self.filed.notify_all()
        return report

    def WatchReports(self, request, context):
        at, sent = request.after, 0
        # A watcher that waits hears of the end of its call too.
        context.add_callback(self.wake)
        while context.is_active():
            with self.filed:
                self.filed.wait_for(lambda: len(self.reports) > at or not context.is_active())
                new = self.reports[at:]
            for report in new:
                at += 1
                if request.city in ("", report.city):
                    yield weather_pb2.WatchReportsResponse(position=at, report=report)
                    sent += 1
                    if sent == request.count:
                        return

    def wake(self):
        with self.filed:
            self.filed.notify_all()


def main():
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50060"
    # Each watcher holds a thread.
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=64))
    weather_pb2_grpc.add_WeatherServicer_to_server(Weather(), server)
    service = weather_pb2.DESCRIPTOR.services_by_name["Weather"].full_name
    reflection.enable_server_reflection([service, reflection.SERVICE_NAME], server)
    port = server.add_insecure_port(address)
    server.start()
    print(f"weather service on {address.rpartition(':')[0]}:{port}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: server.stop(grace=1))
    server.wait_for_termination()


main()

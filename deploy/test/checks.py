"""What a person does with the stack, and what must come out."""

import datetime
import json
import os
import re
import shlex
import subprocess
import threading
import time

from daemon import Failed, run

# Far beyond what is normal, because the machine may be busy; nothing waits for it when things go right.
PATIENCE_SECONDS = 240
STOP_SECONDS_MAX = 5
# One binary and, if it is not static, the C library: of a build with all symbols too.
IMAGE_BYTES_MAX = 64_000_000
# Where a container's `docker logs -f` goes on for ever.
FOLLOWING = re.compile(r"\blogs -f\b")


def commands(text):
    """The lines of the blocks marked `sh test`, with what the comment behind each promises."""
    found, is_inside = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            is_inside = line[3:].strip() == "sh test"
        elif is_inside and line.strip():
            command, _, promise = line.partition(" # ")
            found.append((command.strip(), promise.strip() or None))
    return found


def wait_for(what, condition, seconds=PATIENCE_SECONDS):
    """Asks until there is an answer."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise Failed(f"still waiting for: {what}")
        time.sleep(0.2)


def expect(condition, what, seen=""):
    if not condition:
        raise Failed(f"{what}\n{seen}")


def described(span, trace):
    """A span in words: service, name, kind."""
    service = trace["processes"][span["processID"]]["serviceName"]
    kind = next((tag["value"] for tag in span["tags"] if tag["key"] == "span.kind"), "")
    return f"{service} {span['operationName']} {kind}"


class Stack:
    """The stack while it is used."""

    def __init__(self, root, ports, say, build_seconds_max):
        self.root = root
        self.ports = ports
        self.say = say
        self.build_seconds_max = build_seconds_max

    # --- running things ---

    def shell(self, command, *, timeout=120, check=True):
        """A line of the documentation, with the ports that this run has."""
        for documented, used in self.ports.items():
            command = re.sub(rf"(localhost:|-p ){documented}\b", rf"\g<1>{used}", command)
        return run(["bash", "-euo", "pipefail", "-c", command], timeout=timeout, check=check, cwd=self.root)

    def compose(self, *words, timeout=120):
        return run(["docker-compose", *words], timeout=timeout, cwd=self.root)

    def container(self, service):
        found = self.compose("ps", "-q", service).split()
        expect(len(found) == 1, f"one container of {service}", found)
        return found[0]

    def inspect(self, service):
        return json.loads(run(["docker", "inspect", self.container(service)]))[0]

    def curl(self, path, *, port=8080, words=()):
        """Status and body."""
        url = f"http://localhost:{self.ports.get(port, port)}{path}"
        text = run(["curl", "-sS", "-w", "\n%{http_code}", *words, url], check=False)
        body, _, status = text.rpartition("\n")
        return int(status or 0), body

    def get(self, path, *, port, words=()):
        status, body = self.curl(path, port=port, words=words)
        expect(status == 200, f"{path} on {port} answers {status}", body)
        return json.loads(body)

    # --- the documentation ---

    def use_as_documented(self):
        found = commands((self.root / "docs/compose.md").read_text())
        expect(len(found) > 10, "docs/compose.md has commands", found)
        unused = set(CHECKS)
        for command, promise in found:
            check = CHECKS.get(command)
            unused.discard(command)
            expect(check or promise, f"nothing says what comes out of: {command}")
            if command == "docker-compose down":
                self.look_closer()
            self.say(command)
            if check:
                check(self, command)
            elif promise:
                self.keep_promise(command, promise)
        expect(not unused, "checks of commands that docs/compose.md does not have", unused)

    def keep_promise(self, command, promise):
        """What may take a moment, such as the way of a change, is asked for again."""
        seen = []

        def is_kept():
            seen.append(self.shell(command.replace("curl ", "curl -sS ", 1), check=False).strip())
            return seen[-1] == promise

        try:
            wait_for(promise, is_kept)
        except Failed:
            raise Failed(f"{command}\npromised: {promise}\nseen:     {seen[-1]}") from None

    def up(self, command):
        begun = time.monotonic()
        self.shell(command, timeout=self.build_seconds_max)
        self.say(f"  up after {time.monotonic() - begun:.1f} s")

    def all_healthy(self, command):
        """`docker-compose ps` shows every service, up and healthy."""
        services = self.compose("config", "--services").split()

        def is_healthy():
            lines = self.shell(command).splitlines()
            return len([line for line in lines if re.search(r"\bUp\b.*\(healthy\)", line)]) == len(services) or None

        try:
            wait_for("every container is healthy", is_healthy)
        except Failed:
            raise Failed(f"not all of {services} are healthy:\n{self.shell(command)}") from None

    def change_appears(self, command):
        """Follows the log until the change of the curl before is in it."""
        self.follow(command, r"\bhello\b.*\bworld\b")

    def follow(self, command, pattern):
        process = subprocess.Popen(shlex.split(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        timer = threading.Timer(PATIENCE_SECONDS, process.kill)
        timer.start()
        seen = []
        try:
            for line in process.stdout:
                seen.append(line)
                if re.search(pattern, line):
                    self.say(f"  {line.rstrip()}")
                    return
            raise Failed(f"{command}: no line matches {pattern}\n{''.join(seen)}")
        finally:
            timer.cancel()
            process.kill()
            process.stdout.close()
            process.wait()

    def is_admin(self, command):
        answer = json.loads(self.shell(f"{command} -sS"))
        expect(answer.get("name") == "fluxadmin" and "administrator" in answer.get("tags", ""), command, answer)

    def queue_is_there(self, command):
        queues = json.loads(self.shell(f"{command} -sS"))
        expect(any(queue["name"].startswith("flux.cdc") for queue in queues), "a queue of changes", queues)

    def services_are_traced(self, command):
        wait_for("traces of gateway and node", lambda: len(json.loads(self.shell(f"{command} -sS"))["data"]) >= 2)

    def whole_trace(self, command):
        """Gateway and node are in the trace of the curl, each span below its right parent."""
        trace_id = self.shell(command).split()[-1]
        expect(re.fullmatch(r"[0-9a-f]{32}", trace_id), f"{command}: a trace id", trace_id)
        seen = []

        def is_whole():
            status, body = self.curl(f"/api/traces/{trace_id}", port=16686)
            if status != 200:
                return False
            trace = json.loads(body)["data"][0]
            names = {span["spanID"]: described(span, trace) for span in trace["spans"]}
            parents = {names[span["spanID"]]: [names.get(reference["spanID"], "unknown")
                                               for reference in span["references"] if reference["refType"] == "CHILD_OF"]
                       for span in trace["spans"]}
            seen[:] = [parents]
            return all(parents.get(span) == parent for span, parent in TRACE.items())

        try:
            wait_for("the whole trace", is_whole)
        except Failed:
            raise Failed(f"{command}\nexpected: {TRACE}\nreceived: {seen}") from None
        for span, parent in seen[0].items():
            self.say(f"  {span} <- {parent}")
        self.consumer_is_linked(trace_id)

    def consumer_is_linked(self, trace_id):
        """The consumer's span of the change, in a trace of its own, points to the trace of the curl."""
        seen = []

        def is_linked():
            status, body = self.curl("/api/traces?service=flux-cdc-consumer&limit=50", port=16686)
            if status != 200:
                return False
            seen[:] = [(described(span, trace), reference["traceID"])
                       for trace in json.loads(body)["data"] for span in trace["spans"]
                       for reference in span["references"] if reference["refType"] == "FOLLOWS_FROM"]
            return any(linked == trace_id and span.startswith("flux-cdc-consumer process ")
                       for span, linked in seen)

        try:
            wait_for("the consumer's span with a link to the write", is_linked)
        except Failed:
            raise Failed(f"no span of the consumer is linked to {trace_id}\nreceived: {seen}") from None
        self.say("  the consumer's span is linked to it")

    def everything_is_up(self, command):
        """Every target that Prometheus knows answers its scrapes."""
        targets = (self.root / "deploy/prometheus/prometheus.yml").read_text()
        wanted = {target for line in re.findall(r"targets: \[(.*)\]", targets) for target in re.findall(r'"([^"]+)"', line)}
        seen = []

        def is_up():
            result = json.loads(self.shell(f"{command} -sS"))["data"]["result"]
            seen[:] = [(row["metric"]["instance"], row["value"][1]) for row in result]
            return {instance for instance, value in seen if value == "1"} == wanted

        try:
            wait_for("every target is up", is_up)
        except Failed:
            raise Failed(f"Prometheus sees {seen}, wanted are {wanted}") from None

    def registrations(self, command):
        """Three nodes are there, and each offers its services."""

        def keys():
            found = self.shell(command).split()
            nodes = {key.rsplit("/", 1)[1] for key in found if key.startswith("flux/nodes/")}
            serving = {key.rsplit("/", 1)[1] for key in found if key.startswith("flux/services/flux.kv.v1.Kv/")}
            return nodes == serving == {"kv1", "kv2", "kv3"}

        wait_for("kv1, kv2 and kv3 as nodes and as services", keys)

    def honest_error(self, command):
        """Without a majority of the nodes the gateway says so, in JSON, and soon."""

        def answer():
            status, body = self.curl("/api/v1/kv?key=hello")
            return (status, body) if status != 200 else None

        status, body = wait_for("the gateway notices", answer)
        expect(status in (502, 503, 504), f"{command}: an honest status, not {status}", body)
        expect(json.loads(body).get("message"), f"{command}: a message", body)
        self.say(f"  {status} {body}")

    def down(self, command):
        begun = time.monotonic()
        self.shell(command)
        self.say(f"  down after {time.monotonic() - begun:.1f} s")
        left = run(["docker", "ps", "--all", "--quiet"]).split()
        expect(not left, "no container is left", left)

    def nothing_left(self, command):
        self.down(command)
        volumes = run(["docker", "volume", "ls", "--quiet"]).split()
        named = [volume for volume in volumes if not re.fullmatch(r"[0-9a-f]{64}", volume)]
        expect(not named, "no named volume is left", named)

    # --- beyond the documentation ---

    def look_closer(self):
        """While everything is up; at its end some containers are stopped."""
        self.all_healthy("docker-compose ps")
        self.founding_pages_answer()
        self.only_loopback()
        self.image_is_small_and_without_secrets()
        self.password_is_needed()
        self.crash_is_survived()
        self.stops_are_quick()

    def founding_pages_answer(self):
        for port in (15672, 16686, 9090):
            status, _ = self.curl("/", port=port, words=["-L"])
            expect(status == 200, f"port {port} answers {status}")
        status, _ = self.curl("/api/whoami", port=15672, words=["-u", "guest:guest"])
        expect(status == 401, f"guest may not enter, but got {status}")

    def only_loopback(self):
        for service in self.compose("config", "--services").split():
            ports = self.inspect(service)["HostConfig"]["PortBindings"] or {}
            hosts = {binding["HostIp"] for bindings in ports.values() for binding in bindings}
            expect(hosts <= {"127.0.0.1"}, f"{service} is published on {hosts}")

    def image_is_small_and_without_secrets(self):
        image = self.inspect("kv1")["Image"]
        facts = json.loads(run(["docker", "image", "inspect", image]))[0]
        config = facts["Config"]
        expect(config["User"] == "65532:65532", "the image's user", config["User"])
        expect(config["StopSignal"] == "SIGTERM", "the stop signal", config)
        expect("/data" in config["Volumes"], "a volume", config)
        history = run(["docker", "history", "--no-trunc", image])
        for text in (json.dumps(config), history):
            expect("flux2026secure" not in text, "no secret in the image", text)
        size = facts["Size"]
        expect(size <= IMAGE_BYTES_MAX, f"the image has at most {IMAGE_BYTES_MAX / 1e6:.0f} MB", f"{size / 1e6:.1f} MB")
        self.say(f"  image: {size / 1e6:.1f} MB")

    def password_is_needed(self):
        port = self.ports[7379]
        refused = run(["redis-cli", "-p", port, "GET", "hello"], check=False)
        expect("NOAUTH" in refused, "a node without the password refuses", refused)

    def crash_is_survived(self):
        """kill -9 of the process itself: Docker starts it again, and what was acknowledged is there."""
        form = ["-X", "POST", "-d", "key=crash&value=survived"]
        status, body = self.curl("/api/v1/kv", words=form)
        expect((status, body) == (200, '{"success":true}'), f"a write answers {status}", body)
        before = self.inspect("kv1")
        os.kill(before["State"]["Pid"], 9)
        wait_for("kv1 is started again", lambda: self.inspect("kv1")["RestartCount"] > before["RestartCount"])
        expected = (200, '{"value":"survived","found":true}')
        wait_for("the value is back", lambda: self.curl("/api/v1/kv?key=crash") == expected)

    def stops_are_quick(self):
        """Process 1 heeds SIGTERM: it ends by itself, with 0, long before the grace is over."""
        for service in ("gateway", "cdc-consumer", "kv1", "kv2"):
            container = self.container(service)
            begun = time.time()
            run(["docker", "stop", "--time", "30", container])
            state = json.loads(run(["docker", "inspect", container]))[0]["State"]
            # Until the process ended: taking networks down afterwards takes Docker seconds at times.
            finished = datetime.datetime.fromisoformat(state["FinishedAt"][:23].rstrip("Z") + "+00:00")
            seconds = finished.timestamp() - begun
            expect(state["ExitCode"] == 0, f"{service} ends with {state['ExitCode']}",
                   run(["docker", "logs", "--tail", "20", container]))
            expect(seconds < STOP_SECONDS_MAX, f"docker stop of {service} took {seconds:.1f} s")
            self.say(f"  docker stop {service}: {seconds:.1f} s")

    # --- the end ---

    def explain(self):
        """What a failure is looked into with."""
        print(run(["docker-compose", "ps", "--all"], check=False, cwd=self.root))
        for service in ("etcd", "rabbitmq", "jaeger", "prometheus", "kv1", "kv2", "gateway", "cdc-consumer"):
            print(f"--- {service}")
            print(run(["docker-compose", "logs", "--no-color", "--tail", "25", service], check=False, cwd=self.root))

    def remove(self):
        run(["docker-compose", "down", "--volumes", "--timeout", "5"], check=False, cwd=self.root)
        run(["docker", "container", "prune", "--force"], check=False)
        run(["docker", "volume", "prune", "--force"], check=False)
        run(["docker", "image", "rm", "--force", "flux-kv:local"], check=False)
        run(["docker", "image", "prune", "--force"], check=False)


# The spans of a write that Jaeger must have, with their parents.
TRACE = {
    "flux-gateway POST /api/v1/kv server": [],
    "flux-gateway flux.kv.v1.Kv/Set client": ["flux-gateway POST /api/v1/kv server"],
    "flux-node flux.kv.v1.Kv/Set server": ["flux-gateway flux.kv.v1.Kv/Set client"],
}

# Commands of docs/compose.md whose outcome is more than one line.
CHECKS = {
    "docker-compose up --build -d": Stack.up,
    "docker-compose ps": Stack.all_healthy,
    "docker logs -f flux-cdc-consumer": Stack.change_appears,
    "curl -u fluxadmin:flux2026secure http://localhost:15672/api/whoami": Stack.is_admin,
    "curl -u fluxadmin:flux2026secure http://localhost:15672/api/queues": Stack.queue_is_there,
    "curl http://localhost:16686/api/services": Stack.services_are_traced,
    'curl -i -sS -X POST -d "key=traced&value=yes" http://localhost:8080/api/v1/kv | grep -i x-trace-id': Stack.whole_trace,
    'curl "http://localhost:9090/api/v1/query?query=up"': Stack.everything_is_up,
    "docker-compose exec -T etcd etcdctl get --prefix --keys-only flux/": Stack.registrations,
    "docker-compose kill kv1": lambda stack, command: stack.shell(command),
    "docker-compose kill kv2": lambda stack, command: stack.shell(command),
    "docker-compose start kv1 kv2": lambda stack, command: stack.shell(command),
    "curl -i http://localhost:8080/api/v1/kv?key=hello": Stack.honest_error,
    "docker-compose up -d": Stack.up,
    "docker-compose down": Stack.down,
    "docker-compose down -v": Stack.nothing_left,
}

"""Images without a registry: a base from debootstrap, the third parties from Debian's packages, and
Flux-KV's own from its Dockerfile.

Each third-party image is named after the contents it was made from, so it is made once and found
again in the daemon's data by every later run.
"""

import hashlib
import pathlib
import re
import shutil
import subprocess
import sys

from daemon import Failed, Skip, run, unmount_below

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RECIPES = HERE / "images"
# What each image is called in docker-compose.yml.
VARIABLES = {
    "etcd": "ETCD_IMAGE",
    "rabbitmq": "RABBITMQ_IMAGE",
    "prometheus": "PROMETHEUS_IMAGE",
    "receiver": "JAEGER_IMAGE",
}


def release():
    """Debian's name of this machine's release."""
    fields = dict(line.split("=", 1) for line in pathlib.Path("/etc/os-release").read_text().splitlines() if "=" in line)
    if fields.get("ID", "").strip('"') != "debian":
        raise Skip("images are made from Debian packages, and this is not Debian")
    return fields.get("VERSION_CODENAME", "").strip('"')


def mirror(codename):
    """Where this machine gets Debian from: the first source with the release itself."""
    folder = pathlib.Path("/etc/apt")
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]:
        if not path.is_file():
            continue
        text = path.read_text(errors="replace")
        for line in text.splitlines():
            found = re.match(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)", line)
            if found and found[2] == codename and "main" in found[3].split():
                return found[1]
        for paragraph in re.split(r"\n\s*\n", text):
            fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", paragraph, re.MULTILINE))
            if (codename in fields.get("Suites", "").split() and "main" in fields.get("Components", "").split()
                    and fields.get("URIs")):
                return fields["URIs"].split()[0]
    raise Skip(f"no source of Debian {codename} in /etc/apt")


def digest(*parts):
    joined = hashlib.sha256()
    for part in parts:
        joined.update(part.read_bytes() if isinstance(part, pathlib.Path) else str(part).encode())
        joined.update(b"\0")
    return joined.hexdigest()[:12]


def exists(image):
    return run(["docker", "image", "ls", "--quiet", image]).strip() != ""


def build(name, context, *, recipe=None, arguments=(), timeout=900):
    """Builds with the legacy builder; its output is shown when it fails."""
    recipe = recipe or context / "Dockerfile"
    words = ["docker", "build", "--quiet", "--network", "host", "--tag", name, "--file", recipe]
    for argument in arguments:
        words += ["--build-arg", argument]
    run([*words, context], timeout=timeout)


class Images:
    """Makes what is missing below `work`."""

    def __init__(self, work, say):
        self.work = work
        self.say = say
        self.codename = release()
        self.mirror = mirror(self.codename)

    def third_parties(self):
        """Their names by the variables of docker-compose.yml."""
        base = self.base()
        recipe = RECIPES / "services.Dockerfile"
        services = f"flux-test/services:{digest(base, recipe)}"
        if not exists(services):
            self.say("installing etcd, RabbitMQ and Prometheus into an image")
            build(services, self.context("services"), recipe=recipe, arguments=[f"BASE={base}"])
        images = {}
        for name, variable in VARIABLES.items():
            recipe = RECIPES / f"{name}.Dockerfile"
            own = [HERE / "otlp_receiver.py", HERE / "requirements.txt"] if name == "receiver" else []
            image = f"flux-test/{name}:{digest(services, recipe, *own)}"
            if not exists(image):
                context = self.receiver_context() if own else self.context(name)
                build(image, context, recipe=recipe, arguments=[f"BASE={services}"])
            images[variable] = image
        return images

    def context(self, name):
        folder = self.work / "contexts" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def base(self):
        """A minimal Debian; also what runs a binary that needs a C library."""
        excludes = RECIPES / "base.excludes"
        base = f"flux-test/base:{digest(self.codename, excludes)}"
        if exists(base):
            return base
        self.say(f"making a Debian {self.codename} by debootstrap")
        folder = self.work / "base"
        self.remove(folder)
        try:
            run(["debootstrap", "--variant=minbase", "--include=ca-certificates", self.codename, folder, self.mirror],
                timeout=1800)
        except Failed:
            self.remove(folder)
            raise
        shutil.copy(excludes, folder / "etc/dpkg/dpkg.cfg.d/flux-test")
        for cache in ["var/cache/apt/archives", "var/lib/apt/lists"]:
            shutil.rmtree(folder / cache)
            (folder / cache / "partial").mkdir(parents=True)
        with subprocess.Popen(["tar", "-C", folder, "-c", "."], stdout=subprocess.PIPE) as tar:
            with tar.stdout as stream:
                imported = subprocess.run(["docker", "import", "-", base], stdin=stream, capture_output=True, text=True,
                                          check=False)
        if imported.returncode != 0 or tar.returncode != 0:
            raise Failed(f"docker import: {imported.stderr}")
        shutil.rmtree(folder)
        return base

    @staticmethod
    def remove(folder):
        """What a debootstrap that was ended has left: it mounts the machine's /proc in there."""
        unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)

    def receiver_context(self):
        """The receiver with its packages, fetched here for the Python of the image."""
        context = self.context("receiver")
        shutil.copy(HERE / "otlp_receiver.py", context)
        run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
             "--root-user-action=ignore", "--target", context / "site", "--only-binary=:all:",
             "--python-version", self.python_version(), "--implementation", "cp",
             "--requirement", HERE / "requirements.txt"], timeout=300)
        return context

    def python_version(self):
        """Version of python3 in the services image."""
        recipe = RECIPES / "services.Dockerfile"
        services = f"flux-test/services:{digest(self.base(), recipe)}"
        program = "import sys; print('%d.%d' % sys.version_info[:2])"
        return run(["docker", "run", "--rm", "--network", "none", services, "python3", "-c", program]).strip()

    def around_binary(self, binary):
        """How to build the final stage of the Dockerfile around a binary that exists: the context and
        its arguments. That stage is taken word for word; only the stage that compiles is replaced."""
        context = self.context("binary")
        text = (ROOT / "Dockerfile").read_text()
        final = text[text.rindex("\nFROM ") + 1:]
        if "COPY --from=build" not in final or "${RUN_IMAGE}" not in final:
            raise Failed("the last stage of the Dockerfile is not the one that runs")
        (context / "Dockerfile").write_text(f"ARG RUN_IMAGE\nFROM scratch AS build\nCOPY out /out\n\n{final}")
        (context / "out/data").mkdir(parents=True)
        # Line numbers are three quarters of a binary that the tests are run with.
        run(["strip", "--strip-debug", "-o", context / "out/flux", binary])
        (context / "out/flux").chmod(0o755)
        return context, {"RUN_IMAGE": self.libraries(binary)}

    def libraries(self, binary):
        """What a binary runs on: nothing if it is static, as the one that is shipped, else an image of
        the libraries that it loads, and of no shell or package."""
        linked = run(["ldd", binary], check=False)
        paths = sorted(set(re.findall(r"(?:=> |^\s*)(/\S+) \(0x", linked, re.MULTILINE)))
        if not paths:
            return "scratch"
        image = f"flux-test/libraries:{digest(*paths, *map(pathlib.Path, paths))}"
        if not exists(image):
            context = self.context("libraries")
            for path in paths:
                place = context / "root" / path.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place)
            (context / "Dockerfile").write_text("FROM scratch\nCOPY root /\n")
            build(image, context)
        return image

    def toolchain(self):
        """An image with this machine's Rust, for a build from source."""
        base = self.base()
        recipe = RECIPES / "toolchain.Dockerfile"
        version = run(["rustc", "-vV"], cwd=ROOT)
        image = f"flux-test/toolchain:{digest(base, recipe, version)}"
        if exists(image):
            return image
        self.say("putting this machine's Rust toolchain into an image")
        context = self.context("toolchain")
        sysroot = pathlib.Path(run(["rustc", "--print", "sysroot"], cwd=ROOT).strip())
        shutil.copytree(sysroot, context / "toolchain", symlinks=True,
                        ignore=shutil.ignore_patterns("doc", "man", "src", "*.html"))
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", context)
        build(image, context, recipe=recipe, arguments=[f"BASE={base}"])
        shutil.rmtree(context)
        return image

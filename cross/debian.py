"""Packages from the Debian mirror that this system uses, of any suite and architecture, without being root and without
changing the system: apt works in a directory of its own."""

import re

from toolchain import Failure, run


class Suite:
    """One suite for one architecture, with its lists in a directory."""

    def __init__(self, directory, suite, architecture):
        mirrors = run(["apt-get", "indextargets", "--format", "$(REPO_URI)"]).split()
        mirror = next((uri for uri in mirrors if uri.rstrip("/").endswith("/debian")), None)
        if mirror is None:
            raise Failure("apt knows no Debian mirror here")
        for part in ("lists/partial", "archives/partial", "packages"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        (directory / "status").touch()
        (directory / "sources.list").write_text(f"deb {mirror} {suite} main\n")
        options = {
            "Dir::Etc::sourcelist": directory / "sources.list", "Dir::Etc::sourceparts": "-", "Dir::State": directory,
            "Dir::State::status": directory / "status", "Dir::Cache": directory, "APT::Architecture": architecture,
            "APT::Architectures": architecture, "APT::Sandbox::User": "", "Acquire::Languages": "none",
        }
        self.options = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        self.packages = directory / "packages"
        run(["apt-get", "-qq", *self.options, "update"])

    def newest(self, pattern):
        """The name of the package that fits a pattern and comes last by version."""
        names = [name for name in run(["apt-cache", *self.options, "pkgnames"]).split() if re.fullmatch(pattern, name)]
        if not names:
            raise Failure(f"no package {pattern} in this suite")
        return max(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])

    def version(self, name, prefix):
        """The version of a package that starts so; None when there is none."""
        for line in run(["apt-cache", *self.options, "madison", name]).splitlines():
            version = line.split("|")[1].strip()
            if version.startswith(prefix):
                return version
        return None

    def unpack(self, package, directory):
        """Fetches a package, NAME or NAME=VERSION, and unpacks it."""
        run(["apt-get", "-qq", *self.options, "download", package], cwd=self.packages)
        file, = self.packages.glob(f"{package.split('=')[0]}_*.deb")
        run(["dpkg-deb", "-x", file, directory])
        file.unlink()

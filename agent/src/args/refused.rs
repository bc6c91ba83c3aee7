//! What docker has and wherry has not, each with the reason and what to do instead.

/// Verb, flag, reason.
const FLAGS: &[(&str, &str, &str)] = &[
    (
        "run",
        "--privileged",
        "a rootless container cannot have more rights than you; use --cap-add, -v or --network host",
    ),
    (
        "exec",
        "--privileged",
        "a rootless container cannot have more rights than you; use run --cap-add",
    ),
    (
        "run",
        "--restart",
        "nothing watches over a container of `wherry run`; give the agent a Pod file (wherry agent --help)",
    ),
    (
        "run",
        "--shm-size",
        "the size of /dev/shm is 64 MB; use --tmpfs /dev/shm:size=N",
    ),
    (
        "run",
        "--userns",
        "each container has its own user namespace; leave the flag out",
    ),
    (
        "run",
        "--pid",
        "each container has its own process namespace; leave the flag out",
    ),
    (
        "run",
        "--ipc",
        "each container has its own IPC namespace; leave the flag out",
    ),
    (
        "run",
        "--uts",
        "each container has its own host name; use --hostname",
    ),
    (
        "run",
        "--cgroupns",
        "each container has its own cgroup namespace; leave the flag out",
    ),
    (
        "run",
        "--cgroup-parent",
        "a container's control group is beside that of its caller; start wherry where you want it (systemd-run --user -p Delegate=yes)",
    ),
    (
        "run",
        "--runtime",
        "containers run with wherry-runtime; set WHERRY_RUNTIME to the path of another build of it",
    ),
    (
        "run",
        "--link",
        "containers do not see each other; publish a port with -p",
    ),
    (
        "run",
        "--network-alias",
        "there are no named networks; publish a port with -p",
    ),
    (
        "run",
        "--ip",
        "the address of a private network is fixed; publish a port with -p",
    ),
    (
        "run",
        "--dns",
        "name servers are the board's; mount a file with -v FILE:/etc/resolv.conf",
    ),
    (
        "run",
        "--dns-search",
        "name servers are the board's; mount a file with -v FILE:/etc/resolv.conf",
    ),
    (
        "run",
        "--mount",
        "write it as -v HOST_PATH:CONTAINER_PATH[:ro] or --tmpfs CONTAINER_PATH",
    ),
    ("run", "--volumes-from", "name the directories with -v"),
    (
        "run",
        "--volume-driver",
        "volumes are directories of the board; use -v HOST_PATH:CONTAINER_PATH",
    ),
    ("run", "-P", "say which ports: -p HOST_PORT:CONTAINER_PORT"),
    (
        "run",
        "--publish-all",
        "say which ports: -p HOST_PORT:CONTAINER_PORT",
    ),
    (
        "run",
        "--expose",
        "it has no effect on its own; publish with -p HOST_PORT:CONTAINER_PORT",
    ),
    (
        "run",
        "--init",
        "the image's process is the first process; put an init into the image",
    ),
    (
        "run",
        "--sysctl",
        "kernel parameters cannot be set in a container yet; set them on the board",
    ),
    (
        "run",
        "--log-driver",
        "logs are files of the CRI format, 3 of 10 MB each; read them with wherry logs",
    ),
    (
        "run",
        "--log-opt",
        "logs are files of the CRI format, 3 of 10 MB each; read them with wherry logs",
    ),
    (
        "run",
        "--health-cmd",
        "health checks are not supported yet; leave the flag out",
    ),
    (
        "run",
        "--no-healthcheck",
        "health checks are never run; leave the flag out",
    ),
    (
        "run",
        "--platform",
        "pull the image first: wherry pull --platform OS/ARCH IMAGE",
    ),
    (
        "run",
        "-a",
        "a container in the foreground is attached to all its streams; use -d for none of them",
    ),
    (
        "run",
        "--attach",
        "a container in the foreground is attached to all its streams; use -d for none of them",
    ),
    (
        "run",
        "--detach-keys",
        "a container in the foreground cannot be left running; start it with -d",
    ),
    ("run", "--cidfile", "the id is printed by run -d; redirect it"),
    ("run", "--label-file", "give each label with -l"),
    ("run", "--annotation", "use a label: -l NAME=VALUE"),
    (
        "run",
        "--isolation",
        "there is one kind of isolation on Linux; leave the flag out",
    ),
    ("exec", "--env-file", "give each variable with -e"),
    (
        "exec",
        "--detach-keys",
        "a command in the foreground cannot be left running; start it with -d",
    ),
    ("start", "-a", "read what it writes with wherry logs -f"),
    ("start", "--attach", "read what it writes with wherry logs -f"),
    ("start", "-i", "make a new container with wherry run -i"),
    (
        "start",
        "--interactive",
        "make a new container with wherry run -i",
    ),
    (
        "ps",
        "--filter",
        "filters are not supported yet; use --format json and jq",
    ),
    (
        "ps",
        "-f",
        "filters are not supported yet; use --format json and jq",
    ),
    ("ps", "-n", "use ps -a and head"),
    ("ps", "-l", "use ps -a and head"),
    (
        "ps",
        "-s",
        "sizes are not measured; use du in the state directory",
    ),
    ("logs", "--details", "there are none; leave the flag out"),
    ("logs", "--until", "use --timestamps and cut where you want"),
    ("pull", "-a", "name one tag at a time"),
    ("pull", "--all-tags", "name one tag at a time"),
    ("push", "-a", "name one tag at a time"),
    ("push", "--all-tags", "name one tag at a time"),
    ("rm", "-l", "containers are not linked; leave the flag out"),
    ("rm", "--link", "containers are not linked; leave the flag out"),
];

/// Verb, reason.
const COMMANDS: &[(&str, &str)] = &[
    (
        "build",
        "images are built elsewhere; push them to a registry or pull them from oci:DIR:TAG",
    ),
    (
        "compose",
        "give the agent Pod files instead; see wherry agent --help",
    ),
    (
        "search",
        "registries have no search in common; look on the registry's web page, or ask one you know for its list: curl https://REGISTRY/v2/_catalog",
    ),
    ("create", "use wherry run -d"),
    ("attach", "not supported yet; use wherry logs -f, or wherry exec"),
    ("restart", "use wherry stop and wherry start"),
    (
        "network",
        "there are no named networks; see --network in wherry run --help",
    ),
    (
        "volume",
        "volumes are directories of the board; see -v in wherry run --help",
    ),
    ("login", "put the registry's login into docker's config.json"),
    (
        "cp",
        "use wherry exec with cat or tar, or -v HOST_PATH:CONTAINER_PATH",
    ),
    ("commit", "images are built elsewhere; containers are not images"),
    ("top", "use wherry exec CONTAINER ps"),
    ("stats", "not supported yet; use top on the board"),
    ("events", "not supported yet; the agent reports to the cluster"),
    ("info", "use wherry doctor and wherry version"),
];

pub(super) fn flag(verb: &str, flag: &str) -> Option<&'static str> {
    FLAGS
        .iter()
        .find(|(of, name, _)| *of == verb && *name == flag)
        .map(|(_, _, reason)| *reason)
}

pub(super) fn command(path: &str, word: &str) -> Option<&'static str> {
    let top = !path.contains(' ');
    COMMANDS
        .iter()
        .find(|(name, _)| top && *name == word)
        .map(|(_, reason)| *reason)
}

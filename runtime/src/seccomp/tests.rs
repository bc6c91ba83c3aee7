//! The programs are run on an interpreter of the few instructions they use.

use super::*;
use caps::Capability;

/// Runs a program on a call and returns the action.
fn run(program: &[Instruction], architecture: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(architecture.to_le_bytes());
    data.extend([0; 8]);
    args.iter().for_each(|arg| data.extend(arg.to_le_bytes()));
    let (mut a, mut pc) = (0u32, 0usize);
    loop {
        let i = program[pc];
        pc += 1;
        let jump = |taken: bool| usize::from(if taken { i.jt } else { i.jf });
        match i.code {
            0x20 => a = u32::from_le_bytes(data[i.k as usize..i.k as usize + 4].try_into().unwrap()),
            0x54 => a &= i.k,
            0x05 => pc += i.k as usize,
            0x15 => pc += jump(a == i.k),
            0x25 => pc += jump(a > i.k),
            0x35 => pc += jump(a >= i.k),
            0x06 => return i.k,
            code => panic!("instruction {code:#x} at {pc}"),
        }
    }
}

fn native(filter: &Filter, name: &str, args: [u64; 6]) -> u32 {
    let architecture = Architecture::NATIVE[0];
    let number = Table::read().number(name, architecture).unwrap();
    run(&filter.program, architecture.audit(), number, args)
}

const EPERM: u32 = action::ERRNO | 1;
const ENOSYS: u32 = action::ERRNO | 38;

#[test]
fn the_built_in_profile_decides_as_docker_does() {
    let none = Filter::built_in(&CapsHashSet::new());
    let admin = Filter::built_in(&[Capability::CAP_SYS_ADMIN].into_iter().collect());
    let cases = [
        (&none, "read", [0; 6], action::ALLOW),
        (&none, "mount", [0; 6], EPERM),
        (&none, "bpf", [0; 6], EPERM),
        (&none, "keyctl", [0; 6], EPERM),
        (&none, "io_uring_setup", [0; 6], EPERM),
        (&none, "userfaultfd", [0; 6], EPERM),
        (&none, "unshare", [0; 6], EPERM),
        (&none, "clone3", [0; 6], ENOSYS),
        (&none, "clone", [17, 0, 0, 0, 0, 0], action::ALLOW),
        (&none, "clone", [0x1000_0011, 0, 0, 0, 0, 0], EPERM),
        (&none, "clone", [0x0200_0011, 0, 0, 0, 0, 0], EPERM),
        (&none, "socket", [2, 1, 0, 0, 0, 0], action::ALLOW),
        (&none, "socket", [40, 1, 0, 0, 0, 0], EPERM),
        (&none, "personality", [0, 0, 0, 0, 0, 0], action::ALLOW),
        (&none, "personality", [0x40_0000, 0, 0, 0, 0, 0], EPERM),
        (&none, "personality", [0x1_0000_0000, 0, 0, 0, 0, 0], EPERM),
        (&none, "ptrace", [0; 6], action::ALLOW),
        (&admin, "mount", [0; 6], action::ALLOW),
        (&admin, "clone3", [0; 6], action::ALLOW),
        (&admin, "clone", [0x1000_0011, 0, 0, 0, 0, 0], action::ALLOW),
        (&admin, "reboot", [0; 6], EPERM),
    ];
    for (filter, name, args, expected) in cases {
        assert_eq!(native(filter, name, args), expected, "{name} {args:x?}");
    }
    let architecture = Architecture::NATIVE[0];
    assert_eq!(
        run(&none.program, architecture.audit(), 0x2000, [0; 6]),
        ENOSYS,
        "a call of a later kernel"
    );
    assert_eq!(
        run(&none.program, 0x4000_0003, 0, [0; 6]),
        action::KILL_PROCESS,
        "another architecture"
    );
    if architecture == Architecture::X86_64 {
        assert_eq!(
            run(&none.program, architecture.audit(), 0x4000_0000, [0; 6]),
            ENOSYS,
            "x32"
        );
    }
    let size = none.program.len();
    assert!(size < 500 * Architecture::NATIVE.len(), "{size} instructions");
}

#[test]
fn every_architecture_has_every_allowed_call_at_its_number() {
    let table = Table::read();
    for architecture in Architecture::ALL {
        let mut rules = Vec::new();
        profile::rules(&CapsHashSet::new(), *architecture, |name, checks, action| {
            if let Some(number) = table.number(name, *architecture) {
                rules.push((number, name.to_owned(), checks, action));
            }
        });
        let mut decisions: Vec<_> = rules
            .iter()
            .filter(|rule| rule.2.is_empty())
            .map(|rule| {
                (
                    rule.0,
                    Decision {
                        checked: Vec::new(),
                        rest: rule.3,
                    },
                )
            })
            .collect();
        decisions.sort_by_key(|decision| decision.0);
        decisions.dedup_by_key(|decision| decision.0);
        let ranges = bpf::ranges(decisions, EPERM, table.newest(*architecture), ENOSYS);
        let program = bpf::program(&[(*architecture, bpf::section(*architecture, &ranges))]);
        for (number, name, _, action) in rules.iter().filter(|rule| rule.2.is_empty()) {
            assert_eq!(
                run(&program, architecture.audit(), *number, [0; 6]),
                *action,
                "{architecture:?} {name}"
            );
        }
        let denied = table.number("keyctl", *architecture).unwrap();
        assert_eq!(run(&program, architecture.audit(), denied, [0; 6]), EPERM);
        assert_eq!(
            run(
                &program,
                architecture.audit(),
                table.newest(*architecture) + 1,
                [0; 6]
            ),
            ENOSYS
        );
        assert_eq!(run(&program, architecture.audit(), 0xf_ffff, [0; 6]), ENOSYS);
    }
}

fn profile(text: &str) -> Result<Filter, Error> {
    Filter::compile(&serde_json::from_str(text).unwrap(), &mut Vec::new())
}

/// An operator, its value and second value, and arguments with whether they match.
type Comparison<'a> = (&'a str, u64, u64, &'a [(u64, bool)]);

#[test]
fn arguments_are_compared_in_all_their_64_bits() {
    let big = 0x1_0000_0005u64;
    let cases: &[Comparison<'_>] = &[
        ("EQ", big, 0, &[(big, true), (5, false), (big + 1, false)]),
        ("NE", big, 0, &[(big, false), (5, true), (big - 1, true)]),
        (
            "LT",
            big,
            0,
            &[(big - 1, true), (big, false), (6, true), (0x2_0000_0000, false)],
        ),
        (
            "LE",
            big,
            0,
            &[(big, true), (big + 1, false), (9, true), (0x2_0000_0000, false)],
        ),
        (
            "GT",
            big,
            0,
            &[(big + 1, true), (big, false), (9, false), (0x2_0000_0000, true)],
        ),
        (
            "GE",
            big,
            0,
            &[(big, true), (big - 1, false), (9, false), (0x2_0000_0000, true)],
        ),
        (
            "MASKED_EQ",
            0xff_0000_00ff,
            0x1_0000_0005,
            &[(0x1_0000_0a05, true), (0x2_0000_0005, false), (5, false)],
        ),
    ];
    for (op, value, value_two, args) in cases {
        let filter = profile(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["read"],"action":"SCMP_ACT_ALLOW",
            "args":[{{"index":3,"value":{value},"valueTwo":{value_two},"op":"SCMP_CMP_{op}"}}]}}]}}"#
        ))
        .unwrap();
        for (arg, allowed) in *args {
            let expected = if *allowed { action::ALLOW } else { EPERM };
            assert_eq!(
                native(&filter, "read", [0, 0, 0, *arg, 0, 0]),
                expected,
                "{op} {arg:#x}"
            );
        }
    }
}

#[test]
fn all_checks_of_a_rule_and_any_rule_of_a_call() {
    let filter = profile(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["read","write"],"action":"SCMP_ACT_ERRNO","errnoRet":7,"args":[
            {"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":2,"op":"SCMP_CMP_GE"}]},
        {"names":["read"],"action":"SCMP_ACT_TRAP","args":[{"index":0,"value":9,"op":"SCMP_CMP_EQ"}]},
        {"names":["close"],"action":"SCMP_ACT_KILL_PROCESS"}]}"#,
    )
    .unwrap();
    let cases = [
        ("read", [1, 2], action::ERRNO | 7),
        ("read", [1, 1], action::ALLOW),
        ("read", [9, 0], action::TRAP),
        ("write", [9, 0], action::ALLOW),
        ("write", [1, 3], action::ERRNO | 7),
        ("close", [0, 0], action::KILL_PROCESS),
        ("open", [0, 0], action::ALLOW),
    ];
    for (name, [a, b], expected) in cases {
        let Some(_) = Table::read().number(name, Architecture::NATIVE[0]) else {
            continue;
        };
        assert_eq!(
            native(&filter, name, [a, b, 0, 0, 0, 0]),
            expected,
            "{name} {a} {b}"
        );
    }
}

#[test]
fn what_cannot_be_honoured_is_refused_by_field() {
    let rule = |rest: &str| format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{{rest}}}]}}"#);
    let cases = [
        (
            r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#.to_owned(),
            "linux.seccomp.listenerPath",
        ),
        (
            rule(r#""names":["read"],"action":"SCMP_ACT_NOTIFY""#),
            "linux.seccomp.listenerPath",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_NOTIFY","listenerPath":"/x"}"#.to_owned(),
            "linux.seccomp",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x","syscalls":[{"names":["sendmsg"],"action":"SCMP_ACT_NOTIFY"}]}"#.to_owned(),
            "linux.seccomp",
        ),
        (
            rule(r#""names":["no_such_call"],"action":"SCMP_ACT_ERRNO""#),
            "linux.seccomp.syscalls[0].names",
        ),
        (
            rule(
                r#""names":["read"],"action":"SCMP_ACT_TRAP","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]"#,
            ),
            "linux.seccomp.syscalls[0].args",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}"#.to_owned(),
            "linux.seccomp.flags",
        ),
    ];
    for (text, expected) in cases {
        match profile(&text) {
            Err(Error::Config { field, .. }) => assert_eq!(field, expected),
            other => panic!("{text}: {:?}", other.map(|_| ())),
        }
    }
    // Left out of a list of what is allowed, an unknown name stays denied.
    assert!(
        profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["no_such_call"],"action":"SCMP_ACT_ALLOW"}]}"#
        )
        .is_ok()
    );
}

#[test]
fn the_built_in_filter_is_short() {
    // The kernel compiles it at every start: each instruction is time between `start` and the program.
    let none = Filter::built_in(&CapsHashSet::new());
    assert!(
        none.program.len() < 420 * Architecture::NATIVE.len(),
        "{}",
        none.program.len()
    );
}

//! What Landlock grants a container: a pure function of the bundle and of what the host can do.
//!
//! The domain is entered by the spawner before it makes the first process, so init, `exec` and all their children share
//! one domain and may signal and trace each other. Everything outside of the container's root is unreachable in it, also
//! through a leaked descriptor or `/proc/PID/exe`: reading, writing and executing are granted beneath the root only.

/// What the bundle asks for, as far as it decides the policy.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Annotation `dev.wherry.landlock=off`.
    pub off: bool,
    /// The network namespace is the container's own.
    pub private_network: bool,
    /// The pid namespace is the container's own.
    pub private_pids: bool,
    /// Annotation `dev.wherry.ports`: TCP ports the container may bind under host networking.
    pub ports: Option<Vec<u16>>,
}

/// The domain to enter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Files are reached beneath the root only. There is one right for all of it: what is read-only in there is so by its
    /// mount, and a domain denies remounting.
    pub beneath_root: bool,
    /// If set, TCP may be bound to these ports only.
    pub bind: Option<Vec<u16>>,
    /// No abstract sockets of processes outside.
    pub scope_sockets: bool,
    /// No signals to processes outside.
    pub scope_signals: bool,
    /// Guarantees this host cannot give, one line each.
    pub lost: Vec<String>,
}

impl Policy {
    /// Whether there is a domain to enter at all.
    pub fn enforced(&self) -> bool {
        self.beneath_root
    }
}

/// Decides. `abi` is the kernel's Landlock ABI, 0 without Landlock.
pub fn decide(asked: &Asked, abi: u32) -> Policy {
    let mut policy = Policy::default();
    if asked.off {
        policy
            .lost
            .push("landlock: off, as the annotation dev.wherry.landlock asks".into());
        return policy;
    }
    let lost = |policy: &mut Policy, from: u32, what: &str| {
        if abi < from {
            policy.lost.push(format!(
                "landlock: {what} (needs Landlock ABI {from}, this kernel has {abi})"
            ));
        }
        abi >= from
    };
    if !lost(
        &mut policy,
        1,
        "not enforced: only namespaces keep the container inside its root",
    ) {
        return policy;
    }
    lost(
        &mut policy,
        2,
        "files cannot be linked or renamed across directories",
    );
    lost(&mut policy, 3, "truncating is not covered");
    lost(&mut policy, 5, "device ioctls are not covered");
    policy.beneath_root = true;
    if !asked.private_network {
        if let Some(ports) = &asked.ports
            && lost(&mut policy, 4, "binding TCP ports is not limited")
        {
            policy.bind = Some(ports.clone());
        }
        policy.scope_sockets = lost(&mut policy, 6, "abstract sockets of the host are reachable");
    }
    if !asked.private_pids {
        policy.scope_signals = lost(
            &mut policy,
            6,
            "processes of the host's pid namespace can be signalled",
        );
    }
    policy
}

/// Reads the annotation `dev.wherry.ports`: `80,443`. An empty text means no port at all.
///
/// # Errors
///
/// Returns the part that is no port.
pub fn parse_ports(text: &str) -> Result<Vec<u16>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| {
            part.parse()
                .map_err(|_| format!("expected ports like \"80,443\", got {part:?}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_decision() {
        let private = Asked {
            private_network: true,
            private_pids: true,
            ..Asked::default()
        };
        let host = Asked {
            ports: Some(vec![80]),
            ..Asked::default()
        };
        let cases = [
            ("kernel without", private.clone(), 0, Policy::default(), 1),
            (
                "switched off",
                Asked {
                    off: true,
                    ..private.clone()
                },
                7,
                Policy::default(),
                1,
            ),
            (
                "private",
                private.clone(),
                7,
                Policy {
                    beneath_root: true,
                    ..Policy::default()
                },
                0,
            ),
            (
                "private on the first ABI",
                private.clone(),
                1,
                Policy {
                    beneath_root: true,
                    ..Policy::default()
                },
                3,
            ),
            (
                "host network and pids",
                host.clone(),
                6,
                Policy {
                    beneath_root: true,
                    bind: Some(vec![80]),
                    scope_sockets: true,
                    scope_signals: true,
                    ..Policy::default()
                },
                0,
            ),
            (
                "host network, ABI 3",
                host.clone(),
                3,
                Policy {
                    beneath_root: true,
                    ..Policy::default()
                },
                4,
            ),
            (
                "host network without declared ports",
                Asked {
                    ports: None,
                    private_pids: true,
                    ..Asked::default()
                },
                7,
                Policy {
                    beneath_root: true,
                    scope_sockets: true,
                    ..Policy::default()
                },
                0,
            ),
            (
                "ports mean nothing in a private network",
                Asked {
                    ports: Some(vec![1]),
                    ..private
                },
                7,
                Policy {
                    beneath_root: true,
                    ..Policy::default()
                },
                0,
            ),
        ];
        for (name, asked, abi, expected, lost) in cases {
            let mut policy = decide(&asked, abi);
            assert_eq!(policy.lost.len(), lost, "{name}: {:?}", policy.lost);
            policy.lost.clear();
            assert_eq!(policy, expected, "{name}");
        }
    }

    #[test]
    fn ports() {
        assert_eq!(parse_ports("80, 443").unwrap(), [80, 443]);
        assert!(parse_ports("").unwrap().is_empty());
        for bad in ["http", "65536", "-1", "80;81"] {
            assert!(parse_ports(bad).unwrap_err().contains(bad), "{bad}");
        }
    }
}

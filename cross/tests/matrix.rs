//! Boards that lack something: containers run, and what is lost is told by its name.

mod parts;

use std::io::Result;

use parts::{AARCH64, BOX, user, user_all, with_box};
use wherry_cross::{Board, Disk};

/// As Raspberry Pi OS boots: without the memory controller.
#[test]
fn without_the_memory_controller_on_6_12() -> Result<()> {
    let disk = Disk::new(512)?;
    let mut pi = with_box(
        &Board::new("6.12").append("cgroup_disable=memory"),
        AARCH64,
        &disk,
    )?;
    let controllers = pi.run("cat /sys/fs/cgroup/cgroup.controllers")?.ok()?;
    assert!(!controllers.contains("memory"), "{controllers}");
    let said = user_all(&mut pi, &format!("wherry run --rm --memory 64m {BOX} echo ran"))?;
    assert!(said.contains("ran\n"), "{said}");
    assert!(
        said.contains("memory") && said.contains("cgroup_enable=memory"),
        "the lost limit is not named: {said}"
    );
    // The controllers that are there do what they do.
    let forks = "for n in 1 2 3 4 5 6; do sleep 5 & done; echo all";
    let said = user_all(
        &mut pi,
        &format!("wherry run --rm --pids-limit 4 {BOX} sh -c '{forks}' || true"),
    )?;
    assert!(said.contains("can't fork") && !said.contains("all"), "{said}");
    let said = user_all(&mut pi, "wherry doctor || true")?;
    assert!(
        said.contains("no memory controller") && said.contains("cgroup_enable=memory"),
        "{said}"
    );
    pi.off()
}

/// As a kernel without Landlock.
#[test]
fn without_landlock_on_6_1() -> Result<()> {
    let disk = Disk::new(512)?;
    let mut pi = with_box(&Board::new("6.1").append("lsm=capability"), AARCH64, &disk)?;
    let said = user_all(&mut pi, &format!("wherry run -d --name box {BOX} sleep 1000"))?;
    println!("{said}");
    let state = user_all(&mut pi, "wherry inspect box; wherry doctor || true")?;
    assert!(
        state.to_lowercase().contains("landlock"),
        "the lost guarantee is not named: {state}"
    );
    assert_eq!(user(&mut pi, "wherry exec box echo here")?, "here\n");
    // The filter still stands.
    let said = user_all(
        &mut pi,
        "wherry exec box grep -E 'Seccomp:|NoNewPrivs' /proc/self/status || wherry exec box cat /proc/self/status",
    )?;
    assert!(
        said.contains("Seccomp:\t2") && said.contains("NoNewPrivs:\t1"),
        "{said}"
    );
    user(&mut pi, "wherry stop -t 1 box && wherry rm box")?;
    pi.off()
}

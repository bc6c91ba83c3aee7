//! Classic BPF for `struct seccomp_data { int nr; u32 arch; u64 ip; u64 args[6]; }`.

use super::action;
use super::table::Architecture;
use crate::sys::Instruction;

/// The kernel's `BPF_MAXINSNS`.
pub(super) const MAX_LENGTH: usize = 4096;

/// Numbers from here on are x32's, on x86_64.
const X32: u32 = 0x4000_0000;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const IF_EQ: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_GT: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const IF_GE: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Ne,
    Lt,
    Le,
    Eq,
    Ge,
    Gt,
    Masked(u64),
}

/// One comparison of one 64-bit argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) argument: u32,
    pub(super) operator: Operator,
    pub(super) value: u64,
}

/// What becomes of one call: the action of the first list of checks that all hold, or the rest's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) checked: Vec<(Vec<Check>, u32)>,
    pub(super) rest: u32,
}

fn statement(code: u16, k: u32) -> Instruction {
    Instruction {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

fn branch(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// Ranges of numbers by their first one, the first from 0, each with one decision.
pub(super) fn ranges(
    decisions: Vec<(u32, Decision)>,
    default: u32,
    newest: u32,
    unknown: u32,
) -> Vec<(u32, Decision)> {
    let plain = |rest| Decision {
        checked: Vec::new(),
        rest,
    };
    let mut ranges: Vec<(u32, Decision)> = vec![(0, plain(default))];
    let mut add = |first: u32, decision: Decision| match ranges.last_mut() {
        Some(last) if last.1 == decision => {}
        Some(last) if last.0 == first => last.1 = decision,
        _ => ranges.push((first, decision)),
    };
    // The number after the last decision: everything before it is decided.
    let mut next = 0;
    let gap = |add: &mut dyn FnMut(u32, Decision), from: u32, to: u32| {
        if from < to && from <= newest {
            add(from, plain(default));
        }
        if to > newest + 1 && from.max(newest + 1) < to {
            add(from.max(newest + 1), plain(unknown));
        }
    };
    for (number, decision) in decisions {
        gap(&mut add, next, number);
        add(number, decision);
        next = number + 1;
    }
    gap(&mut add, next, u32::MAX);
    ranges
}

/// The part of a program for one architecture: the number is loaded and searched.
pub(super) fn section(architecture: Architecture, ranges: &[(u32, Decision)]) -> Vec<Instruction> {
    // A few instructions for each range.
    let mut code = Vec::with_capacity(ranges.len() * 4 + 8);
    code.push(statement(LOAD, 0));
    if architecture == Architecture::X86_64 {
        code.push(branch(IF_GE, X32, 0, 1));
        code.push(statement(RETURN, action::ERRNO | libc::ENOSYS as u32));
    }
    search(ranges, &mut code);
    code
}

/// The whole program.
pub(super) fn program(sections: &[(Architecture, Vec<Instruction>)]) -> Vec<Instruction> {
    let mut code = vec![statement(LOAD, 4)];
    for (architecture, section) in sections {
        code.push(branch(IF_EQ, architecture.audit(), 1, 0));
        code.push(statement(JUMP, section.len() as u32));
        code.extend_from_slice(section);
    }
    code.push(statement(RETURN, action::KILL_PROCESS));
    code
}

/// How many instructions [`search`] gives.
fn length(ranges: &[(u32, Decision)]) -> usize {
    match ranges {
        [] => 1,
        [(_, decision)] => {
            if decision.checked.is_empty() {
                return 1;
            }
            let mut code = Vec::new();
            decide(decision, &mut code);
            code.len()
        }
        _ => {
            let (left, right) = ranges.split_at(ranges.len() / 2);
            let below = length(left);
            let branch = if u8::try_from(below).is_ok() { 1 } else { 2 };
            branch + below + length(right)
        }
    }
}

fn search(ranges: &[(u32, Decision)], code: &mut Vec<Instruction>) {
    match ranges {
        [] => code.push(statement(RETURN, action::KILL_PROCESS)),
        [(_, decision)] => decide(decision, code),
        _ => {
            let (left, right) = ranges.split_at(ranges.len() / 2);
            let Some((first, _)) = right.first() else {
                return;
            };
            // Over what is below: by the branch itself if that is near enough, for the kernel compiles each instruction.
            let below = length(left);
            match u8::try_from(below) {
                Ok(below) => code.push(branch(IF_GE, *first, below, 0)),
                Err(_) => {
                    code.push(branch(IF_GE, *first, 0, 1));
                    code.push(statement(JUMP, below as u32));
                }
            }
            search(left, code);
            search(right, code);
        }
    }
}

/// Every block ends with a return, so blocks can be put one after another.
fn decide(decision: &Decision, code: &mut Vec<Instruction>) {
    for (checks, action) in &decision.checked {
        let mut block = vec![statement(RETURN, *action)];
        for check in checks.iter().rev() {
            let mut longer = compare(check, block.len());
            longer.append(&mut block);
            block = longer;
        }
        code.append(&mut block);
    }
    code.push(statement(RETURN, decision.rest));
}

/// Falls through if the check holds, else jumps over `rest` instructions that follow.
fn compare(check: &Check, rest: usize) -> Vec<Instruction> {
    // A rule has at most a few dozen checks of six instructions; the jump is bounded by what a byte can say.
    let rest = u8::try_from(rest).unwrap_or(u8::MAX);
    let (low, high) = (16 + check.argument * 8, 20 + check.argument * 8);
    let (value_low, value_high) = (check.value as u32, (check.value >> 32) as u32);
    let over = |instructions: u8| rest.saturating_add(instructions);
    let load = |offset| statement(LOAD, offset);
    match check.operator {
        Operator::Eq => vec![
            load(high),
            branch(IF_EQ, value_high, 0, over(2)),
            load(low),
            branch(IF_EQ, value_low, 0, rest),
        ],
        Operator::Ne => vec![
            load(high),
            branch(IF_EQ, value_high, 0, 2),
            load(low),
            branch(IF_EQ, value_low, rest, 0),
        ],
        Operator::Masked(mask) => vec![
            load(high),
            statement(AND, (mask >> 32) as u32),
            branch(IF_EQ, value_high, 0, over(3)),
            load(low),
            statement(AND, mask as u32),
            branch(IF_EQ, value_low, 0, rest),
        ],
        Operator::Gt | Operator::Ge => vec![
            load(high),
            branch(IF_GT, value_high, 3, 0),
            branch(IF_EQ, value_high, 0, over(2)),
            load(low),
            branch(
                if check.operator == Operator::Gt {
                    IF_GT
                } else {
                    IF_GE
                },
                value_low,
                0,
                rest,
            ),
        ],
        Operator::Lt | Operator::Le => vec![
            load(high),
            branch(IF_GT, value_high, over(3), 0),
            branch(IF_EQ, value_high, 0, 2),
            load(low),
            branch(
                if check.operator == Operator::Lt {
                    IF_GE
                } else {
                    IF_GT
                },
                value_low,
                rest,
                0,
            ),
        ],
    }
}

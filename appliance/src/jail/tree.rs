//! A filter of system calls by their numbers alone, as a tree of comparisons in front of another filter.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// AUDIT_ARCH_X86_64 of `linux/audit.h`.
const X86_64: u32 = 0xc000_003e;

/// What a call is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is done.
    Allow,
    /// ENOSYS, as from a kernel that does not have it.
    Absent,
}

impl Answer {
    fn code(self) -> u32 {
        match self {
            Self::Allow => libc::SECCOMP_RET_ALLOW,
            Self::Absent => libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned(),
        }
    }
}

/// The program that answers `calls`, and leaves all others, and calls of other kinds of programs, to `rest`. None where a number is
/// none, or there are more than jumps reach over.
pub(super) fn before(rest: BpfProgram, calls: &BTreeMap<i64, Answer>) -> Option<BpfProgram> {
    let calls: Vec<(u32, Answer)> = calls
        .iter()
        .map(|(call, answer)| Some((u32::try_from(*call).ok()?, *answer)))
        .collect::<Option<_>>()?;
    let tree = branch(&calls)?;
    let mut program = vec![load(ARCHITECTURE), compare(libc::BPF_JEQ, X86_64, 1, 0)];
    // Over the next one and the tree.
    program.push(pass(tree.len().checked_add(1)?)?);
    program.push(load(NUMBER));
    let size = tree.len();
    for (at, instruction) in tree.into_iter().enumerate() {
        program.push(match instruction {
            Step::Is(instruction) => instruction,
            Step::Pass => pass(size.checked_sub(at)?.checked_sub(1)?)?,
        });
    }
    program.extend(rest);
    Some(program)
}

enum Step {
    Is(sock_filter),
    /// To the end of the tree.
    Pass,
}

fn branch(calls: &[(u32, Answer)]) -> Option<Vec<Step>> {
    if let [(number, answer)] = calls {
        let answer = sock_filter { code: code(libc::BPF_RET | libc::BPF_K), jt: 0, jf: 0, k: answer.code() };
        return Some(vec![Step::Is(compare(libc::BPF_JEQ, *number, 0, 1)), Step::Is(answer), Step::Pass]);
    }
    let (less, more) = calls.split_at(calls.len() / 2);
    let (middle, _) = more.first()?;
    let (less, more) = (branch(less)?, branch(more)?);
    let over = u8::try_from(less.len()).ok()?;
    Some(
        std::iter::once(Step::Is(compare(libc::BPF_JGE, *middle, over, 0))).chain(less).chain(more).collect(),
    )
}

fn load(offset: u32) -> sock_filter {
    sock_filter { code: code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS), jt: 0, jf: 0, k: offset }
}

fn compare(how: u32, with: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter { code: code(libc::BPF_JMP | how | libc::BPF_K), jt: yes, jf: no, k: with }
}

fn pass(over: usize) -> Option<sock_filter> {
    Some(sock_filter { code: code(libc::BPF_JMP | libc::BPF_JA), jt: 0, jf: 0, k: u32::try_from(over).ok()? })
}

/// A code as the kernel's structure has it.
const fn code(bits: u32) -> u16 {
    assert!(bits <= 0xffff);
    #[expect(clippy::cast_possible_truncation, reason = "checked just above")]
    let code = bits as u16;
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer; the end of a program that goes on is 7.
    fn run(program: &[sock_filter], architecture: u32, number: u32) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let step = &program[at];
            let bits = u32::from(step.code);
            at += 1;
            if bits == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS {
                accumulator = if step.k == NUMBER { number } else { architecture };
            } else if bits == libc::BPF_RET | libc::BPF_K {
                return step.k;
            } else if bits == libc::BPF_JMP | libc::BPF_JA {
                at += step.k as usize;
            } else {
                let is = if bits == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K {
                    accumulator == step.k
                } else {
                    accumulator >= step.k
                };
                at += usize::from(if is { step.jt } else { step.jf });
            }
        }
    }

    #[test]
    fn each_number_has_its_answer_and_all_others_go_on() {
        let calls: BTreeMap<i64, Answer> = (0..80)
            .map(|call| (call * call / 2, if call % 9 == 0 { Answer::Absent } else { Answer::Allow }))
            .collect();
        let rest = vec![sock_filter { code: code(libc::BPF_RET | libc::BPF_K), jt: 0, jf: 0, k: 7 }];
        let program = before(rest, &calls).unwrap();
        for number in (0..4000).chain([0x4000_0000, 0x4000_0008, u32::MAX]) {
            let wanted = calls.get(&i64::from(number)).map_or(7, |answer| answer.code());
            assert_eq!(run(&program, X86_64, number), wanted, "{number}");
            assert_eq!(run(&program, 0x4000_0003, number), 7, "{number} of a 32-bit program");
        }
        assert!(before(Vec::new(), &BTreeMap::from([(-1, Answer::Allow)])).is_none());
    }
}

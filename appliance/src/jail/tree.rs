//! A filter of system calls by their numbers alone, as a tree of comparisons in front of another filter.
//!
//! The numbers are taken as ranges, and all their ends are the same few: the kernel translates each instruction as it takes a
//! filter in, and where there are half as many it does so in two thirds of the time. Only comparisons with constants, as it
//! finds calls that are always allowed by those, and does not ask the filter again for them.

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

    fn end(self) -> sock_filter {
        sock_filter { code: code(libc::BPF_RET | libc::BPF_K), jt: 0, jf: 0, k: self.code() }
    }
}

/// The program that answers `calls`, and leaves all others, and calls of other kinds of programs, to `rest`. None where a number is
/// none, or there are more than jumps reach over.
pub(super) fn before(rest: BpfProgram, calls: &BTreeMap<i64, Answer>) -> Option<BpfProgram> {
    let mut tree = Vec::new();
    if !matches!(branch(&ranges(calls)?, &mut tree)?, Next::Node(_)) {
        return Some(rest);
    }
    let answers = [Answer::Allow, Answer::Absent].map(Answer::end);
    let over = tree.len().checked_add(answers.len())?.checked_add(1)?;
    let mut program =
        vec![load(ARCHITECTURE), compare(libc::BPF_JEQ, X86_64, 1, 0), pass(over)?, load(NUMBER)];
    for (at, Node { from, below, above }) in tree.iter().enumerate() {
        // Counted from the next one.
        let jump = |to: &Next| u8::try_from(to.place(tree.len()).checked_sub(at)?.checked_sub(1)?).ok();
        program.push(compare(libc::BPF_JGE, *from, jump(above)?, jump(below)?));
    }
    program.extend(answers);
    program.extend(rest);
    Some(program)
}

/// All numbers, by where another answer begins.
fn ranges(calls: &BTreeMap<i64, Answer>) -> Option<Vec<(u32, Option<Answer>)>> {
    let mut ranges: Vec<(u32, Option<Answer>)> = vec![(0, None)];
    for (call, answer) in calls {
        let number = u32::try_from(*call).ok()?;
        // What the one before ended with may be no number at all.
        ranges.pop_if(|(from, _)| *from == number);
        ranges.extend([(number, Some(*answer)), (number.checked_add(1)?, None)]);
    }
    ranges.dedup_by_key(|(_, answer)| *answer);
    Some(ranges)
}

/// Is the number at least this?
struct Node {
    from: u32,
    below: Next,
    above: Next,
}

enum Next {
    Node(usize),
    Answer(Answer),
    /// The other filter.
    Rest,
}

impl Next {
    /// In the program, from the first node on.
    fn place(&self, nodes: usize) -> usize {
        match self {
            Self::Node(at) => *at,
            Self::Answer(Answer::Allow) => nodes,
            Self::Answer(Answer::Absent) => nodes.saturating_add(1),
            Self::Rest => nodes.saturating_add(2),
        }
    }
}

/// Adds the nodes that tell these ranges apart, the first of them first.
fn branch(ranges: &[(u32, Option<Answer>)], tree: &mut Vec<Node>) -> Option<Next> {
    if let [(_, answer)] = ranges {
        return Some(answer.map_or(Next::Rest, Next::Answer));
    }
    let (less, more) = ranges.split_at(ranges.len() / 2);
    let (from, _) = *more.first()?;
    let at = tree.len();
    tree.push(Node { from, below: Next::Rest, above: Next::Rest });
    let (below, above) = (branch(less, tree)?, branch(more, tree)?);
    *tree.get_mut(at)? = Node { from, below, above };
    Some(Next::Node(at))
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
        let program = before(rest.clone(), &calls).unwrap();
        for number in (0..4000).chain([0x4000_0000, 0x4000_0008, u32::MAX]) {
            let wanted = calls.get(&i64::from(number)).map_or(7, |answer| answer.code());
            assert_eq!(run(&program, X86_64, number), wanted, "{number}");
            assert_eq!(run(&program, 0x4000_0003, number), 7, "{number} of a 32-bit program");
        }
        assert!(before(Vec::new(), &BTreeMap::from([(-1, Answer::Allow)])).is_none());
        assert_eq!(run(&before(rest, &BTreeMap::new()).unwrap(), X86_64, 0), 7);
    }
}

//! What lists of system calls are made of.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// By the number of a call: any of these, or with any arguments where there is none.
pub(super) type Rules = BTreeMap<i64, Vec<SeccompRule>>;
pub(super) type Result<T> = std::result::Result<T, BackendError>;

/// What every list has: no memory becomes code that was not; signals to this process alone (what abort(3) does, and what kicks
/// vCPUs); of prctl(2) these.
pub(super) fn common(prctls: &[i32]) -> Result<Rules> {
    let mut rules = Rules::new();
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(&[bits(2, libc::PROT_EXEC, 0)?])?]);
    }
    rules.insert(libc::SYS_tgkill, vec![rule(&[is(0, std::process::id().into())?])?]);
    let prctls = prctls.iter().map(|what| rule(&[is(0, number(*what))?]));
    rules.insert(libc::SYS_prctl, prctls.collect::<Result<_>>()?);
    Ok(rules)
}

/// Of clone(2): threads, and nothing in namespaces of its own.
pub(super) fn threads() -> Result<SeccompRule> {
    let apart = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET;
    rule(&[bits(0, libc::CLONE_THREAD | apart, libc::CLONE_THREAD)?])
}

/// Calls with any arguments.
pub(super) fn any(calls: &[i64]) -> Rules {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

/// Compiled: what `matched` is for calls with a rule, and for all others.
pub(super) fn program(
    rules: Rules,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> io::Result<BpfProgram> {
    let filter = SeccompFilter::new(rules, otherwise, matched, TargetArch::x86_64);
    filter.and_then(BpfProgram::try_from).map_err(io::Error::other)
}

pub(super) fn rule(conditions: &[SeccompCondition]) -> Result<SeccompRule> {
    SeccompRule::new(conditions.to_vec())
}

/// The argument is this.
pub(super) fn is(argument: u8, value: u64) -> Result<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

/// Of the argument's bits in `mask`, those of `value` are set.
pub(super) fn bits(argument: u8, mask: i32, value: i32) -> Result<SeccompCondition> {
    let equal = SeccompCmpOp::MaskedEq(number(mask));
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, equal, number(value))
}

pub(super) fn number(value: i32) -> u64 {
    u64::from(value.cast_unsigned())
}

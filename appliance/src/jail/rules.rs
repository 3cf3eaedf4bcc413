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

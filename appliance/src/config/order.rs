//! In which order guests start: each after all that it depends on.

use std::collections::{BTreeMap, BTreeSet};

use super::Vm;

/// Guests that wait for each other, each for the next one and the last for the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loop(pub Vec<String>);

/// All guests, each after those that it depends on; else by name. What is not defined is passed over.
///
/// # Errors
/// Some wait for each other.
pub fn start_order(vms: &BTreeMap<String, Vm>) -> Result<Vec<&str>, Loop> {
    let mut order = Vec::with_capacity(vms.len());
    let mut done = BTreeSet::new();
    for name in vms.keys() {
        let mut path = Vec::new();
        visit(name, vms, &mut path, &mut done, &mut order)?;
    }
    Ok(order)
}

fn visit<'a>(
    name: &'a str,
    vms: &'a BTreeMap<String, Vm>,
    path: &mut Vec<&'a str>,
    done: &mut BTreeSet<&'a str>,
    order: &mut Vec<&'a str>,
) -> Result<(), Loop> {
    if let Some(at) = path.iter().position(|before| *before == name) {
        return Err(Loop(path.iter().skip(at).map(|name| (*name).to_owned()).collect()));
    }
    let Some(vm) = vms.get(name).filter(|_| !done.contains(name)) else { return Ok(()) };
    path.push(name);
    let mut depends: Vec<&str> = vm.depends_on.iter().map(String::as_str).collect();
    depends.sort_unstable();
    for other in depends {
        visit(other, vms, path, done, order)?;
    }
    path.pop();
    done.insert(name);
    order.push(name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Document, load_all};

    fn guests(text: &str) -> Config {
        let lines = text.lines().map(|line| {
            let (name, depends) = line.split_once(':').unwrap();
            format!("  {name}: {{memory: 1MiB, boot: {{kernel: /k}}, depends-on: [{}]}}\n", depends.trim())
        });
        let text = format!("version: 1\nvms:\n{}", lines.collect::<String>());
        load_all(&Document { name: "a".into(), text }).0.unwrap()
    }

    #[test]
    fn guests_come_after_what_they_depend_on_and_else_by_name() {
        let config = guests("a: z\nb:\nc: a, b\nz:");
        assert_eq!(start_order(&config.vms), Ok(vec!["z", "a", "b", "c"]));
        assert_eq!(start_order(&guests("b:\na: nobody").vms), Ok(vec!["a", "b"]));
    }

    #[test]
    fn guests_that_wait_for_each_other_are_told_in_their_order() {
        let config = guests("a: b\nb: c\nc: d\nd: b");
        assert_eq!(start_order(&config.vms), Err(Loop(vec!["b".into(), "c".into(), "d".into()])));
        assert_eq!(start_order(&guests("a: a").vms), Err(Loop(vec!["a".into()])));
    }
}

//! The order in which a tar can say the hard links to files of lower layers.

use super::failure::{Failure, Result};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LowerLink {
    pub path: Vec<u8>,
    /// What lower layers have there.
    pub target: Vec<u8>,
}

/// Whoever unpacks a tar goes by its order: a link comes before those that give its target's name, or that of a folder above it, to something else.
/// As given where that does not matter.
///
/// Kahn's algorithm over two kinds of nodes, the links and the targets: a link per edge would be the square of what a layer can have.
pub fn in_order(links: Vec<LowerLink>) -> Result<Vec<LowerLink>> {
    let mut links_to: HashMap<&[u8], usize> = HashMap::new();
    for link in &links {
        // To itself: the name stays what it is, wherever that stands.
        if link.path != link.target {
            *links_to.entry(&link.target).or_default() += 1;
        }
    }
    let mut waiting_for: HashMap<&[u8], Vec<usize>> = HashMap::new();
    let mut targets_before = vec![0; links.len()];
    for (at, link) in links.iter().enumerate() {
        for name in with_folders(&link.path).filter(|name| links_to.contains_key(name)) {
            waiting_for.entry(name).or_default().push(at);
            targets_before[at] += 1;
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> = (0..links.len()).filter(|&at| targets_before[at] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(links.len());
    while let Some(Reverse(at)) = ready.pop() {
        order.push(at);
        let link = &links[at];
        let Some(left) = links_to.get_mut(&*link.target).filter(|_| link.path != link.target) else { continue };
        *left -= 1;
        if *left == 0 {
            for waiting in waiting_for.remove(&*link.target).unwrap_or_default() {
                targets_before[waiting] -= 1;
                if targets_before[waiting] == 0 {
                    ready.push(Reverse(waiting));
                }
            }
        }
    }
    if let Some(at) = (0..links.len()).find(|&at| targets_before[at] > 0) {
        return Err(Failure::corrupt("hard links that take each other's names: no tar can say them").at(&links[at].path));
    }
    Ok(order.into_iter().map(|at| links[at].clone()).collect())
}

/// A path and those of the folders above it, but not the root.
fn with_folders(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| at);
    ends.chain([path.len()]).map(|end| &path[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(links: &[(&str, &str)]) -> Option<Vec<String>> {
        let link = |&(path, target): &(&str, &str)| LowerLink { path: path.into(), target: target.into() };
        let order = in_order(links.iter().map(link).collect()).ok()?;
        Some(order.into_iter().map(|link| String::from_utf8(link.path).unwrap()).collect())
    }

    fn paths(paths: &[&str]) -> Option<Vec<String>> {
        Some(paths.iter().map(|&path| path.to_owned()).collect())
    }

    #[test]
    fn stays_as_it_is_where_no_name_is_taken() {
        assert_eq!(ordered(&[("b", "x"), ("a", "x"), ("c/d", "y")]), paths(&["b", "a", "c/d"]));
        assert_eq!(ordered(&[]), paths(&[]));
    }

    #[test]
    fn puts_a_link_before_those_that_take_its_targets_name() {
        assert_eq!(ordered(&[("b", "c"), ("a", "b")]), paths(&["a", "b"]));
        assert_eq!(ordered(&[("a/b/c", "x"), ("a/b/d", "y"), ("z", "a")]), paths(&["z", "a/b/c", "a/b/d"]));
        assert_eq!(ordered(&[("c", "d"), ("b", "c"), ("a", "b"), ("y", "c")]), paths(&["a", "b", "y", "c"]));
    }

    #[test]
    fn a_link_to_itself_holds_nobody_up() {
        assert_eq!(ordered(&[("b", "b"), ("a", "b")]), paths(&["a", "b"]));
        assert_eq!(ordered(&[("b", "b")]), paths(&["b"]));
    }

    #[test]
    fn refuses_links_that_take_each_others_names() {
        assert_eq!(ordered(&[("a", "b"), ("b", "a")]), None);
        assert_eq!(ordered(&[("a/x", "b"), ("b/y", "a")]), None);
        assert_eq!(ordered(&[("a/x", "a")]), None);
    }
}

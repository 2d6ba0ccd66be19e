//! A checkpoint's tensors in groups: those whose names differ in their layers' and experts' numbers alone.

use std::collections::BTreeMap;

use plimsoll_nn::TensorInfo;
use serde::Serialize;

/// Tensors of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Group {
    /// With `*` for each number.
    pub(super) name: String,
    /// Element type, as the file calls it.
    pub(super) element: String,
    pub(super) count: usize,
    /// Outermost first; nothing if they differ.
    pub(super) shape: Option<Vec<usize>>,
    pub(super) bytes: u64,
}

/// In the order of their names.
pub(super) fn groups(tensors: &[TensorInfo<'_>]) -> Vec<Group> {
    let mut groups: BTreeMap<(String, String), Group> = BTreeMap::new();
    for tensor in tensors {
        let name = without_numbers(tensor.name);
        let shape = Some(tensor.shape.to_vec());
        let group = groups.entry((name.clone(), tensor.element.clone())).or_insert_with(|| {
            let element = tensor.element.clone();
            Group { name, element, count: 0, shape: shape.clone(), bytes: 0 }
        });
        group.count += 1;
        group.bytes += tensor.bytes;
        if group.shape != shape {
            group.shape = None;
        }
    }
    groups.into_values().collect()
}

/// Bytes of each element type, largest first.
pub(super) fn by_element(groups: &[Group]) -> Vec<(String, u64)> {
    let mut bytes: BTreeMap<&str, u64> = BTreeMap::new();
    for group in groups {
        *bytes.entry(&group.element).or_default() += group.bytes;
    }
    let mut sorted: Vec<_> = bytes.into_iter().map(|(element, bytes)| (element.to_owned(), bytes)).collect();
    sorted.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    sorted
}

fn without_numbers(name: &str) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    name.split('.').map(|part| if is_number(part) { "*" } else { part }).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_counted_together_and_types_apart() {
        let tensor = |name, element: &str, shape| TensorInfo { name, element: element.into(), shape, bytes: 8 };
        let tensors = [
            tensor("layers.0.up.weight", "F16", &[2, 2]),
            tensor("layers.1.up.weight", "F16", &[2, 2]),
            tensor("layers.10.up.weight", "F32", &[2]),
            tensor("layers.2.up.weight", "F16", &[4]),
            tensor("norm.weight", "F32", &[2]),
        ];
        let group = |name: &str, element: &str, count, shape: Option<&[usize]>| Group {
            name: name.into(),
            element: element.into(),
            count,
            shape: shape.map(<[usize]>::to_vec),
            bytes: 8 * count as u64,
        };
        let expected = [
            group("layers.*.up.weight", "F16", 3, None),
            group("layers.*.up.weight", "F32", 1, Some(&[2])),
            group("norm.weight", "F32", 1, Some(&[2])),
        ];
        assert_eq!(groups(&tensors), expected);
        assert_eq!(by_element(&expected), [("F16".to_owned(), 24), ("F32".to_owned(), 16)]);
    }
}

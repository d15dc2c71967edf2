//! The words of Kubernetes' strategic merge (design proposal "strategic merge patch", and kubectl's behaviour).

/// What a map's key that begins with `$` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key<'a> {
    /// `$patch: replace` or `delete`.
    Patch,
    /// `$retainKeys: [name, …]`: other fields go.
    RetainKeys,
    /// `$setElementOrder/LIST`.
    SetElementOrder(&'a str),
    /// `$deleteFromPrimitiveList/LIST`.
    DeleteFromPrimitiveList(&'a str),
}

pub(super) const PATCH: &str = "$patch";
pub(super) const RETAIN_KEYS: &str = "$retainKeys";
const SET_ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM_PRIMITIVE_LIST: &str = "$deleteFromPrimitiveList/";

/// The directive of that key, if it is one.
pub(super) fn of(key: &str) -> Option<Key<'_>> {
    match key {
        PATCH => Some(Key::Patch),
        RETAIN_KEYS => Some(Key::RetainKeys),
        _ => key
            .strip_prefix(SET_ELEMENT_ORDER)
            .map(Key::SetElementOrder)
            .or_else(|| key.strip_prefix(DELETE_FROM_PRIMITIVE_LIST).map(Key::DeleteFromPrimitiveList)),
    }
}

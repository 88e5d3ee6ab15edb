//! One copy of each string: namespaces, services and port names repeat tens of thousands of times.

use std::collections::HashSet;
use std::sync::Arc;

/// Strings in use, and at most as many again that no longer are.
#[derive(Debug, Default)]
pub(super) struct Interner {
    strings: HashSet<Arc<str>>,
    /// Size at which strings that nobody else holds are dropped.
    sweep_at: usize,
}

impl Interner {
    /// Replaces `string` by the one copy of it.
    pub(super) fn intern(&mut self, string: &mut Arc<str>) {
        if let Some(known) = self.strings.get(string) {
            *string = known.clone();
            return;
        }
        if self.strings.len() >= self.sweep_at {
            self.strings.retain(|string| Arc::strong_count(string) > 1);
            self.sweep_at = (self.strings.len() * 2).max(1024);
        }
        self.strings.insert(string.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_become_one_and_unused_ones_go() {
        let mut interner = Interner::default();
        let (mut one, mut other) = (Arc::from("staging"), Arc::from("staging"));
        interner.intern(&mut one);
        interner.intern(&mut other);
        assert!(Arc::ptr_eq(&one, &other));
        for i in 0..10_000 {
            interner.intern(&mut Arc::from(i.to_string()));
        }
        assert!(interner.strings.len() <= 1025, "{} strings kept", interner.strings.len());
        assert!(interner.strings.contains("staging"));
    }
}

//! What one entry holds: named arrays, one after the other in one block.

use crate::error::{Error, Result};
use crate::layout::Layout;
use std::borrow::Cow;

/// Arrays start at multiples of this, as numpy and vector code like it.
const ALIGN: usize = 64;

/// One array of an entry and where it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    name: Cow<'static, str>,
    layout: Layout,
    offset: usize,
}

impl Field {
    /// Name of the array.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Element type and shape.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Where the array lies in the entry's block.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.layout.nbytes()
    }
}

/// The arrays of an entry, in the order they were given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spec {
    fields: Box<[Field]>,
    span: usize,
    logical: usize,
}

impl Spec {
    /// Lays arrays out one after the other.
    ///
    /// # Errors
    /// [`Error::Layout`] when a name comes twice or the sum does not fit into memory.
    pub fn new(arrays: impl IntoIterator<Item = (Cow<'static, str>, Layout)>) -> Result<Self> {
        let arrays = arrays.into_iter();
        let mut fields: Vec<Field> = Vec::with_capacity(arrays.size_hint().0);
        let (mut span, mut logical) = (0usize, 0usize);
        for (name, layout) in arrays {
            if fields.iter().any(|f| f.name == name) {
                return Err(Error::Layout(format!("two arrays are named {name:?}")));
            }
            let offset = span.checked_next_multiple_of(ALIGN);
            let end = offset.and_then(|at| at.checked_add(layout.nbytes()));
            let (Some(offset), Some(end)) = (offset, end.filter(|&n| isize::try_from(n).is_ok()))
            else {
                return Err(Error::Layout("the arrays together exceed the address space".into()));
            };
            span = end;
            logical += layout.nbytes();
            fields.push(Field { name, layout, offset });
        }
        Ok(Self { fields: fields.into(), span, logical })
    }

    /// The arrays.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The array of this name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|f| f.name == name)
    }

    /// Bytes from the start of the first array to the end of the last.
    pub fn span(&self) -> usize {
        self.span
    }

    /// Bytes of the arrays themselves.
    pub fn logical(&self) -> usize {
        self.logical
    }

    /// Bytes that this description itself takes, allocator headers included.
    pub fn footprint(&self) -> usize {
        let field = |f: &Field| {
            let l = f.layout();
            size_of::<Field>() + f.name.len() + l.dtype().token().len() + 8 * l.shape().len() + 48
        };
        size_of::<Self>() + 32 + self.fields.iter().map(field).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::DType;

    fn layout(shape: &[usize]) -> Layout {
        Layout::new(DType::new("<f4", 4), shape).unwrap_or_else(|e| unreachable!("{e}"))
    }

    #[test]
    fn aligned_and_named_once() {
        let spec = Spec::new([
            ("a".into(), layout(&[3])),
            ("b".into(), layout(&[0])),
            ("c".into(), layout(&[2])),
        ]);
        let spec = spec.unwrap_or_default();
        let ranges: Vec<_> = spec.fields().iter().map(Field::range).collect();
        assert_eq!(ranges, [0..12, 64..64, 64..72]);
        assert_eq!((spec.span(), spec.logical()), (72, 20));
        assert_eq!(spec.field("c").map(Field::range), Some(64..72));
        assert!(spec.field("d").is_none());
        assert!(Spec::new([("a".into(), layout(&[1])), ("a".into(), layout(&[1]))]).is_err());
        assert!(
            Spec::new([("a".into(), layout(&[1 << 60])), ("b".into(), layout(&[1 << 60]))])
                .is_err()
        );
    }
}

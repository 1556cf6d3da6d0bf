//! What one entry holds: named arrays, one after the other in its pieces, as they are or as codes.

use crate::compact::Form;
use crate::error::{Error, Result};
use crate::layout::Layout;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Arrays start at multiples of this, as numpy and vector code like it.
const ALIGN: usize = 64;

/// One array of an entry and where it starts.
#[derive(Debug, Clone)]
pub struct Field {
    name: Cow<'static, str>,
    layout: Layout,
    offset: usize,
    stored: Stored,
}

#[derive(Debug, Clone)]
enum Stored {
    Raw,
    /// So many codes, and what they mean once they are written.
    Codes(usize, Option<Box<Form>>),
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

    /// How the array follows from its codes; `None` where it is stored as it is.
    pub fn form(&self) -> Option<&Form> {
        match &self.stored {
            Stored::Raw => None,
            Stored::Codes(_, form) => form.as_deref(),
        }
    }

    /// Where the array or its codes lie, counted through all pieces of the entry.
    pub fn range(&self) -> Range<usize> {
        let len = match self.stored {
            Stored::Raw => self.layout.nbytes(),
            Stored::Codes(len, _) => len,
        };
        self.offset..self.offset + len
    }
}

/// The arrays of an entry, in the order they were given.
#[derive(Debug, Clone, Default)]
pub struct Spec {
    fields: Vec<Field>,
    raw: usize,
    span: usize,
    logical: usize,
    serial: u64,
}

impl Spec {
    /// No arrays.
    pub const EMPTY: Self = Self { fields: Vec::new(), raw: 0, span: 0, logical: 0, serial: 0 };

    /// Arrays that are stored as they are.
    ///
    /// # Errors
    /// [`Error::Layout`] when a name comes twice or the sum does not fit into memory.
    pub fn new(arrays: impl IntoIterator<Item = (Cow<'static, str>, Layout)>) -> Result<Self> {
        Self::with_codes(arrays.into_iter().map(|(name, layout)| (name, layout, None)))
    }

    /// Arrays of which some are stored as so many codes. The others come first, so that they lie
    /// in the first piece and can be looked at as a whole.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_codes(
        arrays: impl IntoIterator<Item = (Cow<'static, str>, Layout, Option<usize>)>,
    ) -> Result<Self> {
        let arrays = arrays.into_iter();
        let mut fields: Vec<Field> = Vec::with_capacity(arrays.size_hint().0);
        for (name, layout, codes) in arrays {
            if fields.iter().any(|f| f.name == name) {
                return Err(Error::Layout(format!("two arrays are named {name:?}")));
            }
            let stored = codes.map_or(Stored::Raw, |len| Stored::Codes(len, None));
            fields.push(Field { name, layout, offset: 0, stored });
        }
        let mut spec = Self { fields, ..Self::EMPTY };
        spec.raw = spec.place(|f| matches!(f.stored, Stored::Raw))?;
        spec.place(|f| matches!(f.stored, Stored::Codes(..)))?;
        for field in &spec.fields {
            let sum = spec.logical.checked_add(field.layout.nbytes());
            spec.logical = sum.ok_or_else(too_large)?;
        }
        Ok(spec)
    }

    /// Gives the fields of one kind their places behind what is placed already.
    fn place(&mut self, kind: impl Fn(&Field) -> bool) -> Result<usize> {
        for field in self.fields.iter_mut().filter(|f| kind(f)) {
            field.offset = self.span.checked_next_multiple_of(ALIGN).ok_or_else(too_large)?;
            let end = field.offset.checked_add(field.range().len());
            self.span = end.filter(|&n| isize::try_from(n).is_ok()).ok_or_else(too_large)?;
        }
        Ok(self.span)
    }

    /// Says what the codes of an array mean.
    pub fn set_form(&mut self, index: usize, meaning: Form) {
        if let Some(Field { stored: Stored::Codes(_, form), .. }) = self.fields.get_mut(index) {
            *form = Some(Box::new(meaning));
        }
    }

    /// Gives the entry a number that no other of this process has had.
    pub(crate) fn number(&mut self) {
        static LAST: AtomicU64 = AtomicU64::new(0);
        self.serial = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    }

    /// The entry's number: two of the same key that have the same number hold the same arrays. 0
    /// for what no cache keeps.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// The arrays.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The array of this name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|f| f.name == name)
    }

    /// Bytes from the start of the first array to the end of the last that is stored as it is.
    pub fn raw(&self) -> usize {
        self.raw
    }

    /// Bytes from the start of the first array to the end of all.
    pub fn span(&self) -> usize {
        self.span
    }

    /// Bytes of the arrays themselves.
    pub fn logical(&self) -> usize {
        self.logical
    }

    /// Bytes that this description itself takes, allocator headers included, without the books
    /// that entries share.
    pub fn footprint(&self) -> usize {
        let field = |f: &Field| {
            let l = f.layout();
            let form = f.form().map_or(0, |form| size_of::<Form>() + form.aside() + 64);
            let text = f.name.len() + l.dtype().token().len() + 8 * l.shape().len();
            size_of::<Field>() + text + form + 48
        };
        size_of::<Self>() + 32 + self.fields.iter().map(field).sum::<usize>()
    }
}

/// The parts of `pieces`, one behind the other, that cover a range of them.
pub fn slices<'a>(pieces: impl Iterator<Item = &'a [u8]>, range: &Range<usize>) -> Vec<&'a [u8]> {
    let mut start = 0;
    let part = |piece: &'a [u8]| {
        let inside = inside(&mut start, piece.len(), range)?;
        piece.get(inside)
    };
    pieces.filter_map(part).collect()
}

/// The same, to be written.
pub fn slices_mut<'a>(
    pieces: impl Iterator<Item = &'a mut [u8]>,
    range: &Range<usize>,
) -> Vec<&'a mut [u8]> {
    let mut start = 0;
    let part = |piece: &'a mut [u8]| {
        let inside = inside(&mut start, piece.len(), range)?;
        piece.get_mut(inside)
    };
    pieces.filter_map(part).collect()
}

/// What a range covers of the next `len` bytes.
fn inside(start: &mut usize, len: usize, range: &Range<usize>) -> Option<Range<usize>> {
    let piece = *start..*start + len;
    *start = piece.end;
    let (from, to) = (range.start.max(piece.start), range.end.min(piece.end));
    (from < to).then(|| from - piece.start..to - piece.start)
}

fn too_large() -> Error {
    Error::Layout("the arrays together exceed the address space".into())
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
        assert_eq!((spec.raw(), spec.span(), spec.logical()), (72, 72, 20));
        assert_eq!(spec.field("c").map(Field::range), Some(64..72));
        assert!(spec.field("d").is_none());
        assert!(Spec::new([("a".into(), layout(&[1])), ("a".into(), layout(&[1]))]).is_err());
        assert!(
            Spec::new([("a".into(), layout(&[1 << 60])), ("b".into(), layout(&[1 << 60]))])
                .is_err()
        );
    }

    #[test]
    fn codes_lie_behind_what_is_stored_as_it_is() {
        let spec = Spec::with_codes([
            ("a".into(), layout(&[100]), Some(100)),
            ("b".into(), layout(&[3]), None),
            ("c".into(), layout(&[50]), Some(50)),
        ]);
        let spec = spec.unwrap_or_default();
        let ranges: Vec<_> = spec.fields().iter().map(Field::range).collect();
        assert_eq!(ranges, [64..164, 0..12, 192..242]);
        assert_eq!((spec.raw(), spec.span(), spec.logical()), (12, 242, 612));
    }

    #[test]
    fn ranges_cross_pieces() {
        let pieces: [&[u8]; 3] = [&[0, 1, 2], &[3, 4], &[5, 6, 7]];
        let cut = |range| slices(pieces.into_iter(), &range);
        assert_eq!(cut(1..7), [&[1, 2][..], &[3, 4], &[5, 6]]);
        assert_eq!(cut(3..5), [&[3, 4]]);
        assert!(cut(4..4).is_empty());
        let mut owned = pieces.map(<[u8]>::to_vec);
        for part in slices_mut(owned.iter_mut().map(Vec::as_mut_slice), &(2..6)) {
            part.fill(9);
        }
        assert_eq!(owned.concat(), [0, 1, 9, 9, 9, 9, 6, 7]);
    }
}

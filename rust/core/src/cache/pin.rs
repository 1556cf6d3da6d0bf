//! An entry in use.

use super::state::Label;
use super::{Array, Cache, Output};
use crate::arena::{Loan, Piece, page};
use crate::digest::{Algorithm, LEN};
use crate::error::{Error, Result};
use crate::lru::Id;
use crate::pack::{Strided, StridedMut};
use crate::pixels::{Field, Spec, slices};
use std::sync::Arc;

/// Bytes that are compared at a time: both sides stay in the core's own cache.
const COMPARED: usize = 64 << 10;

/// Keeps an entry's bytes where they are; clones count one by one.
pub struct Pin(Home);

enum Home {
    Slot(Loan<Label>),
    Loose(Arc<Loose>),
}

/// Arrays that did not fit, outside the budget and shown as lent.
struct Loose {
    cache: Arc<Cache>,
    piece: Option<Piece>,
    spec: Spec,
}

impl Cache {
    /// Arrays with pages of their own that the cache never keeps: for what did not fit.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the system refuses.
    pub fn loose(self: &Arc<Self>, arrays: &[Array<'_>]) -> Result<Pin> {
        let spec = Spec::new(arrays.iter().map(|a| (a.name.clone(), a.layout.clone())))?;
        let span = spec.span();
        let len = span.max(1).checked_next_multiple_of(page());
        let mut piece = Piece::map(len.ok_or(Error::OutOfMemory { bytes: span, errno: 0 })?)?;
        piece.populate();
        for (field, array) in spec.fields().iter().zip(arrays) {
            array.source.copy_to(&mut piece.bytes_mut()[field.range()]);
        }
        self.lend(piece.len());
        let loose = Loose { cache: self.clone(), piece: Some(piece), spec };
        Ok(Pin(Home::Loose(Arc::new(loose))))
    }

    /// The last user of an entry has come back to it, as was asked for.
    #[cold]
    pub(super) fn told(&self, id: Id) {
        let mut state = self.lock();
        let gone = state.told(id);
        let over = state.is_over();
        drop(state);
        self.dispose(gone.into(), 0);
        if over {
            self.settle_over();
        }
    }
}

impl Pin {
    pub(super) fn new(loan: Loan<Label>) -> Self {
        Self(Home::Slot(loan))
    }

    /// The arrays.
    pub fn spec(&self) -> &Spec {
        match &self.0 {
            Home::Slot(loan) => &loan.label().spec,
            Home::Loose(loose) => &loose.spec,
        }
    }

    /// The bytes of an array that is stored as it is, or of its codes when they lie in one piece.
    pub fn bytes(&self, field: &Field) -> &[u8] {
        self.first().get(field.range()).unwrap_or_default()
    }

    /// The bytes of the entry's first piece, which holds every array that is stored as it is.
    pub fn first(&self) -> &[u8] {
        match &self.0 {
            Home::Slot(loan) => loan.first(),
            Home::Loose(loose) => loose.piece.as_ref().map_or(&[], Piece::bytes),
        }
    }

    /// The bytes of an array as it is stored, or its codes, in as many chunks as they lie in.
    pub fn codes(&self, field: &Field) -> Vec<&[u8]> {
        match &self.0 {
            Home::Slot(loan) => slices(loan.pieces(), &field.range()),
            Home::Loose(_) => vec![self.bytes(field)],
        }
    }

    /// Whether the cache keeps these bytes inside its budget.
    pub fn is_kept(&self) -> bool {
        matches!(self.0, Home::Slot(_))
    }

    /// Another pin of the same bytes; `None` after 2^30 of them.
    pub fn again(&self) -> Option<Self> {
        match &self.0 {
            Home::Slot(loan) => Some(Self::new(loan.again()?)),
            Home::Loose(loose) => Some(Self(Home::Loose(loose.clone()))),
        }
    }

    fn cache(&self) -> &Arc<Cache> {
        match &self.0 {
            Home::Slot(loan) => &loan.label().cache,
            Home::Loose(loose) => &loose.cache,
        }
    }

    /// An array of this entry, decoded into pages of its own.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the system refuses.
    pub fn decode(&self, field: &Field) -> Result<Output> {
        let mut output = Output::new(self.cache(), field.layout().nbytes())?;
        match field.form() {
            Some(form) => form.decode(&self.codes(field), output.bytes_mut())?,
            None => output.bytes_mut().copy_from_slice(self.bytes(field)),
        }
        Ok(output)
    }

    /// The content hash of an array of this entry.
    ///
    /// # Errors
    /// None but those of a broken form.
    pub fn content(&self, field: &Field) -> Result<[u8; LEN]> {
        match field.form() {
            Some(form) => form.hash(&self.codes(field)),
            None => Ok(Algorithm::Blake3.hash(self.bytes(field))),
        }
    }

    /// Whether foreign memory holds the bytes of an array of this entry.
    ///
    /// # Errors
    /// None but those of a broken form.
    pub fn equals(&self, field: &Field, source: &Strided) -> Result<bool> {
        let nbytes = field.layout().nbytes();
        if source.nbytes() != nbytes {
            return Ok(false);
        }
        let size = field.layout().dtype().itemsize().max(1);
        let step = (COMPARED.min(nbytes) / size).max(1) * size;
        let (codes, flat) = (self.codes(field), source.flat());
        let (mut mine, mut theirs) = (vec![0; step], vec![]);
        for at in (0..nbytes).step_by(step) {
            let end = nbytes.min(at + step);
            let mine = match field.form() {
                Some(form) => {
                    let mine = &mut mine[..end - at];
                    form.decode_range(&codes, at / size..end / size, mine)?;
                    &*mine
                }
                None => &self.bytes(field)[at..end],
            };
            let equal = if let Some(flat) = &flat {
                flat.equals(at, mine)
            } else {
                theirs.resize(end - at, 0);
                source.gather(at, &mut theirs);
                theirs == mine
            };
            if !equal {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes an array of this entry to foreign memory of as many bytes.
    ///
    /// # Errors
    /// [`Error::Layout`] when it is not as long.
    pub fn write_to(&self, field: &Field, out: &StridedMut) -> Result<()> {
        match field.form() {
            Some(form) => form.decode_into(&self.codes(field), out),
            None if out.nbytes() == field.layout().nbytes() => {
                out.from_slice(self.bytes(field));
                Ok(())
            }
            None => {
                let (out, all) = (out.nbytes(), field.layout().nbytes());
                Err(Error::Layout(format!("{out} bytes for an array of {all}")))
            }
        }
    }
}

impl Drop for Loose {
    fn drop(&mut self) {
        if let Some(piece) = self.piece.take() {
            let bytes = piece.len();
            if piece.discard().is_ok() {
                self.cache.unlend(bytes);
            }
        }
    }
}

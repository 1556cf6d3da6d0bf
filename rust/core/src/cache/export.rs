//! Entries as records, on their way to other processes and hosts, and records as entries.

use super::{Cache, Pin, Writer};
use crate::compact::record::{self, Content, Draft, Item, Parsed, Stored};
use crate::error::{Error, Result};
use crate::pixels::{Field, Spec};
use std::sync::Arc;

impl Pin {
    /// The entry as one record, in the form in which it is kept.
    ///
    /// # Errors
    /// [`Error::Layout`] when it holds more arrays than a record can, [`Error::Malformed`] on a
    /// big-endian machine, [`Error::OutOfMemory`] when the system refuses.
    pub fn export(&self) -> Result<Vec<u8>> {
        let fields = self.spec().fields();
        let chunks: Vec<_> = fields.iter().map(|field| self.codes(field)).collect();
        let arrays = fields.iter().zip(&chunks);
        let items: Vec<Item<'_>> = arrays.map(|(field, chunks)| item(field, chunks)).collect();
        let draft = Draft::new(&items)?;
        let (mut out, bytes) = (Vec::new(), draft.nbytes());
        let refused = |_| Error::OutOfMemory { bytes, errno: 0 };
        out.try_reserve_exact(bytes).map_err(refused)?;
        draft.write(&mut out);
        Ok(out)
    }
}

fn item<'a>(field: &'a Field, chunks: &'a [&'a [u8]]) -> Item<'a> {
    let content = match field.form() {
        Some(form) => Content::Compact(form, chunks),
        None => Content::Raw(chunks),
    };
    Item { name: field.name(), layout: field.layout(), content }
}

impl Cache {
    /// Writes the entry of a record, which nobody needs to vouch for. Where entries are not kept
    /// compactly its arrays are decoded. `None`, counted: it does not fit.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is no record, or a damaged one; [`Error::OutOfMemory`] when the
    /// system refuses.
    pub fn import(self: &Arc<Self>, record: &[u8]) -> Result<Option<Writer>> {
        let parsed = record::read(record, &self.books)?;
        let spec = Spec::with_codes(parsed.iter().map(|Parsed { name, layout, stored }| {
            let codes = match stored {
                Stored::Compact(_, codes) if self.compact => Some(codes.len()),
                _ => None,
            };
            (name.to_string().into(), layout.clone(), codes)
        }))?;
        let Some(mut writer) = self.begin(spec, None)? else { return Ok(None) };
        for (index, Parsed { stored, .. }) in parsed.into_iter().enumerate() {
            match stored {
                Stored::Compact(form, codes) if self.compact => {
                    writer.encode(index, |chunks| {
                        scatter(codes, chunks);
                        Ok::<_, Error>(form)
                    })?;
                }
                Stored::Compact(form, codes) => writer.fill(|spec, out| {
                    form.decode(&[codes], &mut out[spec.fields()[index].range()])
                })?,
                Stored::Raw(bytes) => writer.fill(|spec, out| {
                    out[spec.fields()[index].range()].copy_from_slice(bytes);
                }),
            }
        }
        Ok(Some(writer))
    }
}

/// Copies bytes into chunks, which have room for them.
fn scatter(mut bytes: &[u8], chunks: &mut [&mut [u8]]) {
    for chunk in chunks {
        let (now, rest) = bytes.split_at(chunk.len().min(bytes.len()));
        chunk[..now.len()].copy_from_slice(now);
        bytes = rest;
    }
}

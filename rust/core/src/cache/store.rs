//! Arrays from elsewhere into an entry: as they are, or in their compact form.

use super::{Cache, Reservation, Writer};
use crate::compact::{self, Plan, Refused};
use crate::digest::{self, Algorithm, CopyHasher, LEN};
use crate::error::Result;
use crate::layout::Layout;
use crate::pack::Strided;
use crate::pixels::Spec;
use std::borrow::Cow;
use std::sync::Arc;

/// One array of an entry to come.
pub struct Array<'a> {
    /// Its name.
    pub name: Cow<'static, str>,
    /// Element type and shape.
    pub layout: &'a Layout,
    /// Its memory.
    pub source: &'a Strided,
}

/// How an array is to be stored.
enum Way {
    Raw,
    Compact(Box<Plan>),
}

impl Cache {
    /// Writes an entry, for which a reservation may have been made; `None`, counted: it does not
    /// fit. Entries may have been evicted for the room that a sample promised to be enough.
    ///
    /// # Errors
    /// [`crate::error::Error`] when the system refuses memory or two arrays have one name.
    pub fn write(
        self: &Arc<Self>,
        arrays: &[Array<'_>],
        reservation: Option<Reservation>,
    ) -> Result<Option<Writer>> {
        let ways = arrays.iter().map(|array| self.way(array)).collect();
        self.write_as(arrays, ways, reservation)
    }

    fn write_as(
        self: &Arc<Self>,
        arrays: &[Array<'_>],
        mut ways: Vec<Way>,
        mut reservation: Option<Reservation>,
    ) -> Result<Option<Writer>> {
        loop {
            let spec = spec(arrays, &ways)?;
            let Some(mut writer) = self.begin(spec, reservation.take())? else { return Ok(None) };
            let Some((index, way)) = self.fill(&mut writer, arrays, &ways) else {
                return Ok(Some(writer));
            };
            // The sample of this array has misled: it takes another room than was found for it.
            ways[index] = way;
        }
    }

    /// Writes an entry of one array. Returns the hash of its content too: that of what is stored,
    /// however others have written to the array meanwhile.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_hashed(self: &Arc<Self>, array: Array<'_>) -> Result<(Option<Writer>, [u8; LEN])> {
        let way = self.way(&array);
        if let Way::Raw = way {
            let spec = Spec::new([(array.name.clone(), array.layout.clone())])?;
            if let Some(mut writer) = self.begin(spec, None)? {
                let mut hasher = CopyHasher::new(Algorithm::Blake3);
                let nbytes = array.layout.nbytes();
                writer.fill(|_, out| hasher.copy(array.source, &mut out[..nbytes]));
                return Ok((Some(writer), hasher.finish()));
            }
        } else if let Some(writer) = self.write_as(std::slice::from_ref(&array), vec![way], None)? {
            let content = writer.content(0)?;
            return Ok((Some(writer), content));
        }
        Ok((None, digest::content(Algorithm::Blake3, array.source)))
    }

    fn way(&self, array: &Array<'_>) -> Way {
        if !self.compact {
            return Way::Raw;
        }
        let plan = compact::plan(&self.books, array.layout, array.source);
        plan.map_or(Way::Raw, |plan| Way::Compact(Box::new(plan)))
    }

    /// Copies or encodes every array. Stops at one that does not come out as planned, and says how
    /// it is to be tried next.
    fn fill(
        &self,
        writer: &mut Writer,
        arrays: &[Array<'_>],
        ways: &[Way],
    ) -> Option<(usize, Way)> {
        for (index, (array, way)) in arrays.iter().zip(ways).enumerate() {
            let refused = match way {
                Way::Raw => {
                    writer.fill(|spec, out| {
                        array.source.copy_to(&mut out[spec.fields()[index].range()])
                    });
                    continue;
                }
                Way::Compact(plan) => writer.encode(index, |chunks| {
                    Plan::clone(plan).encode(&self.books, array.source, chunks)
                }),
            };
            match refused {
                Ok(()) => (),
                Err(Refused::Raw) => return Some((index, Way::Raw)),
                Err(Refused::Again(plan)) => return Some((index, Way::Compact(plan))),
            }
        }
        None
    }
}

fn spec(arrays: &[Array<'_>], ways: &[Way]) -> Result<Spec> {
    Spec::with_codes(arrays.iter().zip(ways).map(|(array, way)| {
        let codes = match way {
            Way::Raw => None,
            Way::Compact(plan) => Some(plan.codes_len()),
        };
        (array.name.clone(), array.layout.clone(), codes)
    }))
}

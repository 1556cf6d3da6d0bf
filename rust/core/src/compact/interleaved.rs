//! Channels that change every few elements: neighbours in a strip differ in their constants.
//!
//! The constants are laid out as often as it takes for a strip to begin at any place among the
//! channels. Where formulas stand, strips are coded as if all elements were of one channel.

use super::decode::Decoder;
use super::encode::Coder;
use super::float32::Floats;
use super::formula::{CONSTANTS, STRIP, Stretch};
use super::geometry::{CHANNELS, Geometry, INTERLEAVED};
use super::half::Halves;
use super::tables::{Table, Values};
use crate::pack::FlatMut;

/// Places among the channels, and a strip.
const PLACES: usize = (INTERLEAVED - 1) * CHANNELS + STRIP;

/// The channel of each place.
pub(super) struct Lanes {
    channels: [u8; PLACES],
    period: usize,
}

impl Lanes {
    pub fn new(geometry: &Geometry) -> Self {
        let Geometry { inner, channels, .. } = *geometry;
        let channel = |place| (place / inner % channels) as u8;
        Self { channels: std::array::from_fn(channel), period: inner * channels }
    }

    #[inline(always)]
    fn after(&self, place: usize, elements: usize) -> usize {
        (place + elements) % self.period
    }

    /// The channels of a strip.
    #[inline(always)]
    fn strip(&self, place: usize) -> &[u8; STRIP] {
        window(&self.channels, place)
    }
}

#[inline(always)]
fn window<T>(row: &[T; PLACES], place: usize) -> &[T; STRIP] {
    // Places are less than the period, whose length is what the row was made for.
    row[place..place + STRIP].first_chunk().unwrap_or_else(|| unreachable!())
}

/// Formulas of all places, if every channel has one.
struct Formulas {
    numbers: [[f32; PLACES]; CONSTANTS],
    first: [u8; PLACES],
}

impl Formulas {
    fn load(lanes: &Lanes, stretches: &[Option<Stretch>]) -> Option<Box<Self>> {
        let all = stretches.iter().copied().collect::<Option<Vec<_>>>()?;
        let mut formulas =
            Box::new(Self { numbers: [[0.0; PLACES]; CONSTANTS], first: [0; PLACES] });
        for (place, &channel) in lanes.channels.iter().enumerate() {
            let (numbers, first) = all[usize::from(channel)].into_parts();
            formulas.first[place] = first;
            for (row, number) in formulas.numbers.iter_mut().zip(numbers) {
                row[place] = number;
            }
        }
        Some(formulas)
    }

    /// The formula of each element of a strip.
    #[inline(always)]
    fn strip(&self, place: usize) -> impl Fn(usize) -> Stretch {
        let numbers = self.numbers.each_ref().map(|row| window(row, place));
        let first = window(&self.first, place);
        move |i| Stretch::from_parts(numbers.map(|row| row[i]), first[i])
    }
}

/// Codes interleaved floats.
pub(super) struct MixedFloats {
    of: Floats,
    lanes: Lanes,
    formulas: Option<Box<Formulas>>,
}

impl MixedFloats {
    pub fn new(of: Floats, lanes: Lanes) -> Self {
        let mut mixed = Self { of, lanes, formulas: None };
        mixed.load();
        mixed
    }

    fn load(&mut self) {
        let stretches: Vec<_> = self.of.tables.iter().map(|table| table.stretch).collect();
        self.formulas = Formulas::load(&self.lanes, &stretches);
    }
}

impl Coder for MixedFloats {
    const SIZE: usize = 4;

    fn channel(&self, place: usize, behind: usize) -> usize {
        self.lanes.after(place, behind)
    }

    #[inline(always)]
    fn code<const FUSED: bool>(&self, place: usize, source: &[u8], codes: &mut [u8]) -> bool {
        let (mut place, mut right) = (place, true);
        let elements = source.as_chunks::<4>().0;
        for (codes, elements) in codes.chunks_mut(STRIP).zip(elements.chunks(STRIP)) {
            right &= self.by_formula::<FUSED>(place, elements, codes)
                || self.by_table(place, elements, codes);
            place = self.lanes.after(place, STRIP);
        }
        right
    }

    fn place(&mut self, place: usize, source: &[u8]) -> Option<u8> {
        self.of.place(self.lanes.channels[place].into(), source)
    }

    #[inline(always)]
    fn refresh<const FUSED: bool>(&mut self) {
        if self.of.has_grown() {
            self.of.refresh::<FUSED>();
            self.load();
        }
    }

    fn has_news(&self) -> bool {
        self.of.has_news()
    }
}

impl MixedFloats {
    #[inline(always)]
    fn by_formula<const FUSED: bool>(
        &self,
        place: usize,
        elements: &[[u8; 4]],
        codes: &mut [u8],
    ) -> bool {
        match (codes.first_chunk_mut(), elements.first_chunk(), &self.formulas) {
            (Some(codes), Some(elements), Some(formulas)) => {
                Stretch::code::<FUSED>(formulas.strip(place), codes, elements)
            }
            _ => false,
        }
    }

    #[inline(always)]
    fn by_table(&self, place: usize, elements: &[[u8; 4]], codes: &mut [u8]) -> bool {
        let (channels, mut wrong) = (self.lanes.strip(place), 0);
        for ((code, &element), &channel) in codes.iter_mut().zip(elements).zip(channels) {
            let table = &self.of.tables[usize::from(channel)];
            let bits = u32::from_le_bytes(element);
            *code = table.lattice.guess(f32::from_bits(bits)) as u8;
            wrong |= table.bits[usize::from(*code)] ^ bits;
        }
        wrong == 0
    }
}

/// Codes interleaved elements of two bytes.
pub(super) struct MixedHalves {
    pub of: Halves,
    pub lanes: Lanes,
}

impl Coder for MixedHalves {
    const SIZE: usize = 2;

    fn channel(&self, place: usize, behind: usize) -> usize {
        self.lanes.after(place, behind)
    }

    #[inline(always)]
    fn code<const FUSED: bool>(&self, place: usize, source: &[u8], codes: &mut [u8]) -> bool {
        let (mut place, mut all) = (place, true);
        let elements = source.as_chunks::<2>().0;
        for (codes, elements) in codes.chunks_mut(STRIP).zip(elements.chunks(STRIP)) {
            for ((code, element), &channel) in
                codes.iter_mut().zip(elements).zip(self.lanes.strip(place))
            {
                let found = self.of.find(channel.into(), *element);
                *code = found.unwrap_or(0);
                all &= found.is_some();
            }
            place = self.lanes.after(place, STRIP);
        }
        all
    }

    fn place(&mut self, place: usize, source: &[u8]) -> Option<u8> {
        self.of.place(self.lanes.channels[place].into(), source)
    }

    fn has_news(&self) -> bool {
        self.of.has_news()
    }
}

/// Decodes interleaved floats.
pub(super) struct MixedTables<'a> {
    tables: &'a [Table],
    lanes: Lanes,
    formulas: Option<Box<Formulas>>,
}

impl<'a> MixedTables<'a> {
    pub fn new(tables: &'a [Table], lanes: Lanes) -> Self {
        let stretches: Vec<_> = tables.iter().map(|table| table.stretch).collect();
        let formulas = Formulas::load(&lanes, &stretches);
        Self { tables, lanes, formulas }
    }
}

impl Decoder for MixedTables<'_> {
    const SIZE: usize = 4;

    #[inline(always)]
    fn decode<const FUSED: bool>(&self, place: usize, codes: &[u8], at: usize, out: &mut FlatMut) {
        let (mut place, mut at) = (place, at);
        let (strips, rest) = codes.as_chunks::<STRIP>();
        for codes in strips {
            let mut values = [0u32; STRIP];
            match &self.formulas {
                Some(formulas) => {
                    let strip = formulas.strip(place);
                    for i in 0..STRIP {
                        values[i] = strip(i).value::<FUSED>(codes[i]).to_bits();
                    }
                }
                None => self.look_up(place, codes, &mut values),
            }
            out.each::<STRIP, 4, _>(at, &values, |value| value.to_le_bytes());
            (place, at) = (self.lanes.after(place, STRIP), at + 4 * STRIP);
        }
        let mut values = [0u32; STRIP];
        self.look_up(place, rest, &mut values);
        out.each::<1, 4, _>(at, &values[..rest.len()], |value| value.to_le_bytes());
    }
}

impl MixedTables<'_> {
    #[inline(always)]
    fn look_up(&self, place: usize, codes: &[u8], values: &mut [u32; STRIP]) {
        let channels = self.lanes.strip(place);
        for ((value, &code), &channel) in values.iter_mut().zip(codes).zip(channels) {
            *value = self.tables[usize::from(channel)].bits[usize::from(code)];
        }
    }
}

/// Decodes interleaved elements of two bytes.
pub(super) struct MixedValues<'a> {
    pub tables: &'a [Values],
    pub lanes: Lanes,
}

impl Decoder for MixedValues<'_> {
    const SIZE: usize = 2;

    #[inline(always)]
    fn decode<const FUSED: bool>(&self, place: usize, codes: &[u8], at: usize, out: &mut FlatMut) {
        let (mut place, mut at) = (place, at);
        for codes in codes.chunks(STRIP) {
            let (mut values, channels) = ([0u16; STRIP], self.lanes.strip(place));
            for ((value, &code), &channel) in values.iter_mut().zip(codes).zip(channels) {
                *value = self.tables[usize::from(channel)].bits[usize::from(code)];
            }
            out.each::<STRIP, 2, _>(at, &values[..codes.len()], |value| value.to_le_bytes());
            (place, at) = (self.lanes.after(place, STRIP), at + 2 * STRIP);
        }
    }
}

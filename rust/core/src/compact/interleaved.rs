//! Channels that change every few elements: sorted into runs of one channel, and back.

use super::decode::Decoder;
use super::encode::Coder;
use super::geometry::{CHANNELS, Geometry};
use crate::pack::FlatMut;

/// Elements that are sorted at a time.
const BLOCK: usize = 256;

/// A coder or decoder of single channels, for pieces that begin anywhere among them.
pub(super) struct Interleaved<C> {
    pub of: C,
    pub geometry: Geometry,
}

/// The channels of neighbouring elements.
struct Channels {
    inner: usize,
    channels: usize,
    channel: usize,
    left: usize,
}

impl<C> Interleaved<C> {
    #[inline(always)]
    fn channels(&self, place: usize) -> Channels {
        let Geometry { inner, channels, .. } = self.geometry;
        Channels { inner, channels, channel: place / inner, left: inner - place % inner }
    }
}

impl Channels {
    #[inline(always)]
    fn next(&mut self) -> usize {
        let channel = self.channel;
        self.left -= 1;
        if self.left == 0 {
            self.left = self.inner;
            self.channel = if channel + 1 == self.channels { 0 } else { channel + 1 };
        }
        channel
    }
}

impl<C: Coder> Coder for Interleaved<C> {
    const SIZE: usize = C::SIZE;

    fn channel(&self, place: usize, behind: usize) -> usize {
        (place + behind) % (self.geometry.inner * self.geometry.channels)
    }

    #[inline(always)]
    fn code<const FUSED: bool>(&self, place: usize, source: &[u8], codes: &mut [u8]) -> bool {
        let mut right = true;
        let mut place = place;
        for (codes, source) in codes.chunks_mut(BLOCK).zip(source.chunks(BLOCK * C::SIZE)) {
            let (mut sorted, mut counts) = ([[0; 4 * BLOCK]; CHANNELS], [0; CHANNELS]);
            let mut channels = self.channels(place);
            for element in source.chunks_exact(C::SIZE) {
                let channel = channels.next();
                let at = counts[channel];
                sorted[channel][at..at + C::SIZE].copy_from_slice(element);
                counts[channel] = at + C::SIZE;
            }
            let mut coded = [[0; BLOCK]; CHANNELS];
            for channel in 0..self.geometry.channels {
                let source = &sorted[channel][..counts[channel]];
                let codes = &mut coded[channel][..source.len() / C::SIZE];
                right &= self.of.code::<FUSED>(channel, source, codes);
            }
            let (mut channels, mut counts) = (self.channels(place), [0; CHANNELS]);
            for code in &mut *codes {
                let channel = channels.next();
                *code = coded[channel][counts[channel]];
                counts[channel] += 1;
            }
            place = self.channel(place, codes.len());
        }
        right
    }

    fn place(&mut self, place: usize, source: &[u8]) -> Option<u8> {
        self.of.place(place / self.geometry.inner, source)
    }

    #[inline(always)]
    fn refresh<const FUSED: bool>(&mut self) {
        self.of.refresh::<FUSED>();
    }

    fn has_news(&self) -> bool {
        self.of.has_news()
    }
}

impl<D: Decoder> Decoder for Interleaved<D> {
    const SIZE: usize = D::SIZE;

    #[inline(always)]
    fn decode<const FUSED: bool>(&self, place: usize, codes: &[u8], at: usize, out: &mut FlatMut) {
        let (mut place, mut at) = (place, at);
        for codes in codes.chunks(BLOCK) {
            let (mut sorted, mut counts) = ([[0; BLOCK]; CHANNELS], [0; CHANNELS]);
            let mut channels = self.channels(place);
            for &code in codes {
                let channel = channels.next();
                sorted[channel][counts[channel]] = code;
                counts[channel] += 1;
            }
            let mut elements = [[0; 4 * BLOCK]; CHANNELS];
            for channel in 0..self.geometry.channels {
                let codes = &sorted[channel][..counts[channel]];
                let mut out = elements[channel].as_mut_slice().into();
                self.of.decode::<FUSED>(channel, codes, 0, &mut out);
            }
            let (mut channels, mut counts) = (self.channels(place), [0; CHANNELS]);
            let mut mixed = [0; 4 * BLOCK];
            let mixed = &mut mixed[..codes.len() * D::SIZE];
            for element in mixed.chunks_exact_mut(D::SIZE) {
                let channel = channels.next();
                let at = counts[channel];
                element.copy_from_slice(&elements[channel][at..at + D::SIZE]);
                counts[channel] = at + D::SIZE;
            }
            out.each::<32, 1, _>(at, mixed, |&byte| [byte]);
            place = (place + codes.len()) % (self.geometry.inner * self.geometry.channels);
            at += mixed.len();
        }
    }
}

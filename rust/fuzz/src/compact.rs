//! The compact form: whatever the array is, every bit of it comes back, or it is refused.
//!
//! An input builds a few arrays. They are encoded one after the other, in books that all of them
//! grow, with the instructions of every level and from strided memory: that must make no
//! difference. After each, everything so far is decoded again.

use crate::image::Image;
use arbitrary::{Result, Unstructured};
use memweir_core::compact::{Books, Encoding, Form, Refused, Source, plan};
use memweir_core::layout::Layout;
use memweir_core::simd::Level;

/// Arrays of one input, one after the other.
pub fn check(input: &[u8]) {
    let mut u = Unstructured::new(input);
    let mut lines: Vec<Line> = Level::all().map(|level| Line::new(level, false)).collect();
    lines.push(Line::new(Level::get(), true));
    let mut images: Vec<Image> = Vec::new();
    while images.len() < 3 && !u.is_empty() {
        let Ok(image) = Image::read(&mut u, images.last()) else { break };
        let cuts = Cuts::read(&mut u).unwrap_or_default();
        let made: Vec<_> = lines.iter_mut().map(|line| line.encode(&image, &cuts)).collect();
        for (other, line) in made.iter().zip(&lines).skip(1) {
            let names = [&made[0], other].map(|made| made.as_ref().map(|(name, ..)| name));
            assert!(made[0] == *other, "{names:?} at {:?}, strided {}", line.level, line.foreign);
        }
        images.push(image);
        lines.iter().for_each(|line| line.recall(&images, &cuts));
    }
}

/// How codes and elements are divided.
#[derive(Debug, Default)]
struct Cuts {
    chunk: usize,
    range: [u16; 2],
}

impl Cuts {
    fn read(u: &mut Unstructured) -> Result<Self> {
        let chunk = match u.arbitrary::<u8>()? {
            0 => usize::from(u.arbitrary::<u16>()?),
            n => 16 * usize::from(n),
        };
        Ok(Self { chunk, range: u.arbitrary()? })
    }
}

/// The size of chunks of codes, of which there are never very many.
fn limited(chunk: usize, codes: usize) -> usize {
    chunk.max(codes / 1000).max(1)
}

/// What has to be the same for all: the form in words, its codes, and its bytes beside them.
type Outline = Option<(String, Vec<u8>, usize)>;

/// Everything that is made with the instructions of one level, from one kind of memory.
struct Line {
    level: Level,
    foreign: bool,
    books: Books,
    made: Vec<Option<(Form, Vec<u8>)>>,
}

impl Line {
    fn new(level: Level, foreign: bool) -> Self {
        Self { level, foreign, books: Books::default(), made: Vec::new() }
    }

    fn encode(&mut self, image: &Image, cuts: &Cuts) -> Outline {
        choose(self.level);
        let strided = image.strided();
        let source = if self.foreign { Source::Foreign(&strided) } else { (&image.bytes).into() };
        let made = encode(&self.books, &image.layout, source, cuts.chunk);
        let outline = made.as_ref().map(|(form, codes)| (form.name(), codes.clone(), form.aside()));
        self.made.push(made);
        outline
    }

    /// Decodes everything so far: the newest in all ways, the others at another level each time.
    fn recall(&self, images: &[Image], cuts: &Cuts) {
        let newest = images.len() - 1;
        for (i, (image, made)) in images.iter().zip(&self.made).enumerate() {
            let Some((form, codes)) = made else { continue };
            for (nth, level) in Level::all().enumerate() {
                choose(level);
                if i == newest && !self.foreign {
                    decode(image, form, codes, cuts);
                } else if (i + nth) % 2 == newest % 2 {
                    decode_all(image, form, codes, cuts);
                }
            }
        }
    }
}

/// The form of an array and its codes, unless it is refused.
pub(crate) fn encode(
    books: &Books,
    layout: &Layout,
    source: Source,
    chunk: usize,
) -> Option<(Form, Vec<u8>)> {
    let mut plan = plan(books, layout, source)?;
    // A plan is replaced at most once: by one of full length.
    for _ in 0..2 {
        let mut codes = vec![0xAA; plan.codes_len()];
        let size = limited(chunk, codes.len());
        let mut chunks: Vec<_> = codes.chunks_mut(size).collect();
        match plan.encode(books, source, &mut chunks) {
            Ok(form) => {
                assert_eq!(form.codes_len(), codes.len());
                assert_eq!(form.nbytes(), source.nbytes());
                let all = codes.len() + form.aside();
                assert!(all <= source.nbytes() / 4 * 3, "not worth it: {}", form.name());
                return Some((form, codes));
            }
            Err(Refused::Again(again)) => plan = *again,
            Err(Refused::Raw) => return None,
        }
    }
    panic!("planned again and again");
}

fn decode_all(image: &Image, form: &Form, codes: &[u8], cuts: &Cuts) {
    let chunks: Vec<_> = codes.chunks(limited(cuts.chunk, codes.len())).collect();
    let mut out = vec![0x55; image.bytes.len()];
    form.decode(&chunks, &mut out).unwrap();
    assert!(out == image.bytes, "{} differs", form.name());
    assert_eq!(form.hash(&chunks).unwrap(), *blake3::hash(&out).as_bytes());
}

fn decode(image: &Image, form: &Form, codes: &[u8], cuts: &Cuts) {
    decode_all(image, form, codes, cuts);
    let (bytes, size) = (&image.bytes, form.itemsize());
    let chunks: Vec<_> = codes.chunks(limited(cuts.chunk, codes.len())).collect();
    let all = bytes.len() / size;
    let [a, b] = cuts.range.map(|cut| usize::from(cut) % (all + 1));
    let range = a.min(b)..a.max(b);
    let mut part = vec![0x55; range.len() * size];
    form.decode_range(&chunks, range.clone(), &mut part).unwrap();
    assert!(part == bytes[range.start * size..range.end * size], "{} {range:?}", form.name());

    let memory = image.decoded(|target| form.decode_into(&chunks, target).unwrap());
    assert!(memory == image.memory, "{} into strides", form.name());

    let mut out = vec![0; bytes.len()];
    assert!(form.decode_range(&chunks, a..all + 1, &mut out).is_err());
    if let (Some((_, short)), Encoding::Codes { .. } | Encoding::Few(_)) =
        (codes.split_last(), form.encoding())
    {
        assert!(form.decode(&[short], &mut out).is_err());
    }
}

/// The level of this thread, where the core lets us choose.
pub(crate) fn choose(level: Level) {
    #[cfg(fuzzing)]
    memweir_core::simd::CHOSEN.set(Some(level));
    #[cfg(not(fuzzing))]
    let _ = level;
}

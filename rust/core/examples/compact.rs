//! What the compact form saves and costs.
//!
//! `compact` measures synthetic images against copying the same bytes, in the same rounds, from and
//! into memory of our own and foreign memory; `compact FILE…` does so with arrays,
//! `NAME@DTYPE@AxBxC.raw`; `compact DIR` encodes and compares every such file of a folder.
#![allow(clippy::unwrap_used, unsafe_code)]

use memweir_core::compact::record::{self, Content, Draft, Item};
use memweir_core::compact::{self, Books, Form, Refused, Source};
use memweir_core::layout::{DType, Layout};
use memweir_core::pack::{Strided, StridedMut};
use memweir_core::simd::Level;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

const CHUNK: usize = 64 << 10;

fn main() {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    match &paths[..] {
        [] => bench(),
        [folder] if folder.is_dir() => files(folder),
        paths => {
            header();
            for path in paths {
                let (name, layout, bytes) = read(path);
                case(&name, &layout, &bytes, &bytes.clone());
            }
        }
    }
}

fn read(path: &Path) -> (String, Layout, Vec<u8>) {
    let name = path.file_stem().unwrap().to_str().unwrap();
    let parts: Vec<_> = name.split('@').collect();
    let shape: Vec<usize> = parts[2].split('x').map(|n| n.parse().unwrap()).collect();
    (name.into(), layout(parts[1], &shape), std::fs::read(path).unwrap())
}

fn header() {
    println!(
        "{:?}; ms, medians of interleaved rounds; x: speed of a memcpy of the array",
        Level::get()
    );
}

fn layout(token: &str, shape: &[usize]) -> Layout {
    let size = match token {
        "bfloat16" => 2,
        token => token[2..].parse().unwrap(),
    };
    Layout::new(DType::new(token, size), shape).unwrap()
}

fn encode(books: &Books, layout: &Layout, source: Source, pool: &mut [u8]) -> Option<Form> {
    let mut plan = compact::plan(books, layout, source)?;
    loop {
        let mut chunks: Vec<_> = pool[..plan.codes_len()].chunks_mut(CHUNK).collect();
        match plan.encode(books, source, &mut chunks) {
            Ok(form) => return Some(form),
            Err(Refused::Again(again)) => plan = *again,
            Err(Refused::Raw) => return None,
        }
    }
}

fn decode(form: &Form, pool: &[u8], out: &mut [u8]) {
    let chunks: Vec<_> = pool[..form.codes_len()].chunks(CHUNK).collect();
    form.decode(&chunks, out).unwrap();
}

fn files(folder: &Path) {
    let books = Books::default();
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    for path in names.iter().filter(|p| p.extension().is_some_and(|e| e == "raw")) {
        let (stem, layout, bytes) = read(path);
        let (mut pool, mut out) = (vec![0; bytes.len()], vec![1; bytes.len()]);
        let start = Instant::now();
        let form = encode(&books, &layout, (&bytes).into(), &mut pool);
        let us = start.elapsed().as_micros();
        match form {
            None => println!("{stem:70} raw ({us} us)"),
            Some(form) => {
                decode(&form, &pool, &mut out);
                let ratio = bytes.len() as f64 / (form.codes_len() + form.aside()) as f64;
                let exact = if out == bytes { "exact" } else { "WRONG" };
                println!("{stem:70} {ratio:5.2} {exact} {us:6} us {}", form.name());
            }
        }
    }
    println!("{} books, {} bytes", books.len(), books.bytes());
}

/// Smooth with noise, as a photograph.
fn photo(elements: usize, seed: u32) -> impl Fn(usize) -> u8 {
    move |i| {
        let mut noise = (i as u32).wrapping_mul(0x9E37_79B1) ^ seed;
        noise = (noise ^ noise >> 15).wrapping_mul(0x85EB_CA6B);
        let wave = (i as f32 * 40.0 / elements as f32 + seed as f32).sin() * 120.0 + 127.0;
        (wave + (noise >> 24) as f32 / 16.0).clamp(0.0, 255.0) as u8
    }
}

const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

fn image(shape: &[usize], inner: usize, half: usize, seed: u32) -> Vec<f32> {
    let n = shape.iter().product();
    let level = photo(n, seed);
    let value = |i: usize| {
        let (first, channel) = (i - i.checked_div(half).map_or(0, |p| p % 2 * half), i / inner % 3);
        (f32::from(level(first)) / 255.0 - MEAN[channel]) / DEVIATION[channel]
    };
    (0..n).map(value).collect()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn timed(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64() * 1e3
}

fn bench() {
    header();
    let floats = |image: &[f32]| image.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let bf16 = |image: &[f32]| {
        let round = |x: &f32| ((x.to_bits() + 0x7FFF + (x.to_bits() >> 16 & 1)) >> 16) as u16;
        image.iter().flat_map(|x| round(x).to_le_bytes()).collect::<Vec<u8>>()
    };
    let qwen: (&[usize], _, _) = (&[5476, 1176], 392, 196);
    let chw: (&[usize], _, _) = (&[1, 3, 1024, 1024], 1 << 20, 0);
    let clip: (&[usize], _, _) = (&[1, 3, 224, 224], 224 * 224, 0);
    let hwc: (&[usize], _, _) = (&[1, 1024, 1024, 3], 1, 0);
    for (name, token, (shape, inner, half)) in [
        ("qwen f32", "<f4", qwen),
        ("chw f32", "<f4", chw),
        ("clip f32", "<f4", clip),
        ("hwc f32", "<f4", hwc),
        ("chw bf16", "bfloat16", chw),
        ("qwen bf16", "bfloat16", qwen),
    ] {
        let make = |seed| {
            let image = image(shape, inner, half, seed);
            if token == "<f4" { floats(&image) } else { bf16(&image) }
        };
        case(name, &layout(token, shape), &make(1), &make(2));
    }
    rejection();
}

fn case(name: &str, layout: &Layout, first: &[u8], second: &[u8]) {
    let mut pool = vec![1u8; first.len()];
    let (mut out, mut copy) = (vec![1u8; first.len()], vec![1u8; first.len()]);
    let (mut other, mut written) = (vec![1u8; first.len()], vec![]);
    // SAFETY: both vectors outlive the descriptions, and nothing else touches them while these are
    // used, but `assert!`.
    let (from, into) = unsafe {
        let len = [first.len()];
        let from = Strided::new(second.as_ptr(), 1, &len, &[1]).unwrap();
        (from, StridedMut::new(other.as_mut_ptr(), 1, &len, &[1]).unwrap())
    };
    let rounds = if first.len() < 1 << 20 { 401 } else { 41 };
    let mut times = [const { vec![] }; 9];
    let mut form = None;
    for _ in 0..rounds {
        let books = Books::default();
        let mut note = |i: usize, time: f64| times[i].push(time);
        note(0, timed(|| copy.copy_from_slice(black_box(second))));
        note(1, timed(|| form = encode(&books, layout, first.into(), &mut pool)));
        note(0, timed(|| copy.copy_from_slice(black_box(first))));
        note(2, timed(|| _ = black_box(compact::plan(&books, layout, second))));
        note(3, timed(|| form = encode(&books, layout, (&from).into(), &mut pool)));
        note(4, timed(|| form = encode(&books, layout, second.into(), &mut pool)));
        let form = form.as_ref().unwrap();
        note(5, timed(|| decode(form, black_box(&pool), &mut out)));
        assert!(out == second);
        let chunks: Vec<_> = pool[..form.codes_len()].chunks(CHUNK).collect();
        note(6, timed(|| form.decode_into(&chunks, black_box(&into)).unwrap()));
        assert!(other == second);
        let item = Item { name: "a", layout, content: Content::Compact(form, &chunks) };
        written.clear();
        note(7, timed(|| Draft::new(&[item]).unwrap().write(&mut written)));
        note(8, timed(|| _ = black_box(record::read(&written, &books).unwrap())));
    }
    let form = form.unwrap();
    let [copy, new, plan, foreign, encode, decode, scatter, write, read] = times.map(median);
    println!(
        "{name:10} {:5.1} MB {:.2}:1  {}  memcpy {copy:.3}  first {new:.3} ({:.2} of repeat)  \
         plan {plan:.3}  encode {encode:.3} ({:.2}x), foreign {foreign:.3} ({:.2}x)  \
         decode {decode:.3} ({:.2}x), foreign {scatter:.3} ({:.2}x)  \
         record of {} bytes: write {write:.3}, read {read:.3}",
        first.len() as f64 / 1e6,
        first.len() as f64 / (form.codes_len() + form.aside()) as f64,
        form.name(),
        new / encode,
        copy / encode,
        copy / foreign,
        copy / decode,
        copy / scatter,
        written.len(),
    );
}

fn rejection() {
    let noise: Vec<u8> = (0..25_800_000u32 / 4)
        .flat_map(|i| ((i.wrapping_mul(0x9E37_79B1) >> 8) as f32 * 1e-7).to_le_bytes())
        .collect();
    let layout = layout("<f4", &[noise.len() / 4 / 1200, 1200]);
    let books = Books::default();
    let (mut cold, mut warm) = (vec![], vec![]);
    let mut sweep = vec![0u8; 64 << 20];
    for round in 0..15 {
        sweep.fill(round);
        let bytes = &noise[..layout.nbytes()];
        cold.push(timed(|| assert!(compact::plan(&books, &layout, bytes).is_none())));
        warm.push(timed(|| assert!(compact::plan(&books, &layout, bytes).is_none())));
    }
    println!("rejection: {:.3} cold, {:.3} warm", median(cold), median(warm));
}

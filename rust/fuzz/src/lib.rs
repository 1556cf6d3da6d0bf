//! What must hold for every input. Each module has one `check`, which panics where something does
//! not; a fuzzer finds the inputs, and those in `seeds` are replayed by `cargo test`.

pub mod compact;
pub mod descriptor;
pub mod framing;
mod image;
pub mod layout;
pub mod proc;
pub mod record;

#[cfg(test)]
mod tests {
    use super::*;

    /// Every line of a file of seeds is an input, in hexadecimal.
    fn replay(seeds: &str, check: fn(&[u8])) {
        check(&[]);
        for line in seeds.lines() {
            let digits = line.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap());
            let input: Vec<u8> = digits.map(|d| u8::from_str_radix(d, 16).unwrap()).collect();
            check(&input);
        }
        // What no seed has led to yet.
        for length in 0..200 {
            let noise = blake3::Hasher::new().update(&[length]).finalize_xof();
            let mut input = vec![0; usize::from(length)];
            let mut noise = noise;
            noise.fill(&mut input);
            check(&input);
        }
    }

    #[test]
    fn descriptor() {
        replay(include_str!("../seeds/descriptor.txt"), descriptor::check);
    }

    #[test]
    fn digest_framing() {
        replay(include_str!("../seeds/digest_framing.txt"), framing::check);
    }

    #[test]
    fn compact() {
        replay(include_str!("../seeds/compact.txt"), compact::check);
    }

    #[test]
    fn proc() {
        replay(include_str!("../seeds/proc.txt"), proc::check);
    }

    #[test]
    fn record() {
        replay(include_str!("../seeds/record.txt"), record::check);
    }

    #[test]
    fn layout() {
        replay(include_str!("../seeds/layout.txt"), layout::check);
    }
}

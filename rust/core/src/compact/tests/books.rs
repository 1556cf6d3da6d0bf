//! Tables that many images, and many threads, fill and share.

use super::*;

#[test]
fn books_are_shared_and_bounded() {
    let books = Books::default();
    let level = Level::get();
    let shapes = [[60, 1176], [61, 1176], [99, 1176]];
    let forms = shapes.map(|shape| {
        let bytes = floats(&image(&shape, 392, 196));
        round_trip_with(&books, level, &layout("<f4", &shape), &bytes, 4096).unwrap().0
    });
    assert_eq!(books.len(), 1);
    let one = books.bytes();
    for i in 1..50 {
        let values: Vec<f32> = (0..9000).map(|j| (noise(j, 1) % 256) as f32 * i as f32).collect();
        round_trip_with(&books, level, &layout("<f4", &[9000]), &floats(&values), 4096).unwrap();
    }
    assert_eq!(books.len(), 32);
    assert!(books.bytes() > one);
    drop(forms);
    // What entries no longer refer to, and nobody is offered, is gone.
    let listed = books.known.list.lock().unwrap().iter().map(|b| b.bytes()).sum::<usize>();
    assert_eq!(books.bytes(), listed);
}

#[test]
fn a_book_with_wrong_levels_gets_a_successor() {
    let books = Books::default();
    let shape = [3, 100, 100];
    let layout = layout("<f4", &shape);
    let right = image(&shape, 10_000, 0);
    let wrong: Vec<f32> = right.iter().map(|x| f32::from_bits(x.to_bits() + 1)).collect();
    for values in [wrong, right] {
        let form =
            round_trip_with(&books, Level::get(), &layout, &floats(&values), 4096).unwrap().0;
        assert_eq!(form.name(), "u8 affine ×3");
    }
    assert_eq!(books.len(), 2);
}

#[test]
fn entries_outlive_growth() {
    // A dark image first, then ever brighter ones: the book grows under the first form.
    let books = Books::default();
    let layout = layout("<f4", &[3, 80, 80]);
    let make = |top: usize| -> Vec<u8> {
        floats(
            &(0..19_200)
                .map(|i| value((noise(i, 9) as usize % top) as u8, i / 6400))
                .collect::<Vec<_>>(),
        )
    };
    let mut kept = Vec::new();
    for top in [60, 90, 130, 180, 256] {
        let bytes = make(top);
        let (form, codes) = round_trip_with(&books, Level::get(), &layout, &bytes, 4096).unwrap();
        kept.push((form, codes, bytes));
        for (form, codes, bytes) in &kept {
            let mut out = vec![0; bytes.len()];
            form.decode(&[codes], &mut out).unwrap();
            assert!(out == *bytes);
        }
    }
    assert_eq!(books.len(), 1);
}

#[test]
fn one_book_grows_from_many_threads() {
    for token in ["<f4", "bfloat16"] {
        let books = Books::default();
        let layout = layout(token, &[3, 64, 64]);
        let make = |seed: u32| {
            let level =
                |i: usize| noise(i, seed).rotate_left(seed) as u8 / 2 + (seed as u8 % 4) * 42;
            let values: Vec<f32> = (0..12_288).map(|i| value(level(i), i / 4096)).collect();
            if token == "<f4" { floats(&values) } else { bf16(&values) }
        };
        round_trip_with(&books, Level::get(), &layout, &make(0), 4096).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (books, layout, make) = (&books, &layout, &make);
                scope.spawn(move || {
                    for seed in 0..12 {
                        let bytes = make(thread + seed);
                        let level = Level::get();
                        round_trip_with(books, level, layout, &bytes, 4096).unwrap();
                    }
                });
            }
        });
    }
}

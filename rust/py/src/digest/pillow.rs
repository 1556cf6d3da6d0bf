//! Pillow's images: read in place where Pillow can say where they are.

use memweir_core::digest::{Algorithm, Hasher, LEN, Source};
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyTuple, PyType};

use super::functions::content;
use super::image::{Image, Pixels, UPRIGHT};
use super::nested::Walk;
use crate::borrow::{Memory, Pixel, class_if_loaded};

/// The EXIF tag of the orientation.
const ORIENTATION: u16 = 0x0112;

/// Bytes of Pillow's memory in a strip, for images in several blocks of it: little beside the
/// image, and still in the cache when it is hashed.
const STRIP: usize = 1 << 20;

/// Whether this is a `PIL.Image.Image`.
pub fn is_image(obj: &Bound<'_, PyAny>) -> PyResult<bool> {
    static TYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match class_if_loaded(obj.py(), &TYPE, "PIL.Image", "Image")? {
        Some(image) => obj.is_instance(image),
        None => Ok(false),
    }
}

/// The current frame, decoded now if it was not yet.
pub fn image<'py>(image: &Bound<'py, PyAny>, algorithm: Algorithm) -> PyResult<Image<'py>> {
    // Decoding may change mode, size and orientation: it comes first.
    let py = image.py();
    image.call_method0(intern!(py, "load"))?;
    let mode: String = image.getattr(intern!(py, "mode"))?.extract()?;
    let (width, height): (usize, usize) = image.getattr(intern!(py, "size"))?.extract()?;
    let palette = if mode.starts_with('P') { Some(palette(image)?) } else { None };
    let pixels = pixels(image, &mode, (width, height), algorithm)?;
    Ok(Image {
        palette,
        transparency: transparency(image, algorithm)?,
        orientation: orientation(image)?,
        mode: mode.into(),
        width,
        height,
        pixels,
    })
}

/// Mode and bytes of the palette that Pillow itself draws with.
fn palette(image: &Bound<'_, PyAny>) -> PyResult<(String, Vec<u8>)> {
    let core = image.getattr("im")?;
    let mode: String = core.call_method0("getpalettemode")?.extract()?;
    let bytes = core.call_method1("getpalette", (&mode, &mode))?;
    Ok((mode, bytes.cast::<PyBytes>()?.as_bytes().to_vec()))
}

/// A colour, an index or the alpha of each: whatever the file had.
fn transparency(image: &Bound<'_, PyAny>, algorithm: Algorithm) -> PyResult<Vec<u8>> {
    let info = image.getattr(intern!(image.py(), "info"))?;
    let key = intern!(image.py(), "transparency");
    let mut walk = Walk::new(algorithm, Vec::new());
    if info.contains(key)? {
        let value = info.get_item(key)?;
        if !value.is_none() {
            walk.value(&value)?;
        }
    }
    Ok(walk.finish())
}

/// The way up, as `PIL.ImageOps.exif_transpose` would read it.
fn orientation(image: &Bound<'_, PyAny>) -> PyResult<u8> {
    let py = image.py();
    let read = || {
        let exif = image.call_method0(intern!(py, "getexif"))?;
        exif.contains(ORIENTATION)?.then(|| exif.get_item(ORIENTATION)).transpose()
    };
    // Malformed metadata raises all sorts of errors, once: Pillow keeps what it could read of it
    // and says that from then on, so the second answer is the one that lasts.
    let Ok(Some(found)) = read().or_else(|_: PyErr| read()) else { return Ok(UPRIGHT) };
    for way in 2..=8u8 {
        if found.eq(way)? {
            return Ok(way);
        }
    }
    Ok(UPRIGHT)
}

fn pixels<'py>(
    image: &Bound<'py, PyAny>,
    mode: &str,
    (width, height): (usize, usize),
    algorithm: Algorithm,
) -> PyResult<Pixels<'py>> {
    let count = width.checked_mul(height).filter(|&n| n > 0);
    let (Some(count), Some(pixel), true) = (count, stored_as(mode), exports(image.py())?) else {
        return by_bytes(image, algorithm);
    };
    match image.call_method0(intern!(image.py(), "__arrow_c_array__")) {
        Ok(export) => match Memory::pixels(export.cast::<PyTuple>()?, count, pixel)? {
            Some(memory) => Ok(Pixels::Memory(memory)),
            None => by_bytes(image, algorithm),
        },
        Err(error) if error.is_instance_of::<PyValueError>(image.py()) => {
            by_strips(image, pixel, (width, height), algorithm)
        }
        Err(error) => Err(error),
    }
}

/// How Pillow keeps a pixel; `None` where the memory is not what `tobytes` returns.
fn stored_as(mode: &str) -> Option<Pixel> {
    Some(match mode {
        "L" | "P" => Pixel::Whole(1),
        "I;16" => Pixel::Whole(2),
        "RGBA" | "RGBa" | "RGBX" | "CMYK" | "I" | "F" => Pixel::Whole(4),
        "RGB" | "YCbCr" | "HSV" => Pixel::FirstThree,
        "LA" | "La" | "PA" => Pixel::Ends,
        _ => return None,
    })
}

/// Whether Pillow's export can be trusted: the first releases that had it leaked, or crashed.
fn exports(py: Python<'_>) -> PyResult<bool> {
    static MODERN: PyOnceLock<bool> = PyOnceLock::new();
    let modern = || {
        let version: String = py.import("PIL")?.getattr("__version__")?.extract()?;
        let major = version.split('.').next().and_then(|n| n.parse::<u32>().ok());
        PyResult::Ok(major.is_some_and(|n| n >= 13))
    };
    MODERN.get_or_try_init(py, modern).copied()
}

fn by_bytes<'py>(image: &Bound<'py, PyAny>, algorithm: Algorithm) -> PyResult<Pixels<'py>> {
    let bytes = image.call_method0("tobytes")?;
    let source = Source::Packed(bytes.cast::<PyBytes>()?.as_bytes());
    let content = content(image.py(), algorithm, &source);
    Ok(Pixels::Hashed(source.nbytes() as u64, content))
}

/// An image in several blocks of memory: some rows are copied to one block, and those exported.
fn by_strips<'py>(
    image: &Bound<'py, PyAny>,
    pixel: Pixel,
    (width, height): (usize, usize),
    algorithm: Algorithm,
) -> PyResult<Pixels<'py>> {
    let py = image.py();
    let rows = (STRIP / (4 * width)).max(1);
    let mut hasher = Hasher::new(algorithm);
    for top in (0..height).step_by(rows) {
        let bottom = height.min(top + rows);
        let strip = image.call_method1("crop", ((0, top, width, bottom),))?;
        let export = strip.call_method0("__arrow_c_array__")?;
        let Some(memory) =
            Memory::pixels(export.cast::<PyTuple>()?, width * (bottom - top), pixel)?
        else {
            return by_bytes(image, algorithm);
        };
        py.detach(|| hasher.update_strided(memory.source()));
    }
    let (len, content): (u64, [u8; LEN]) = (hasher.len(), hasher.finish());
    Ok(Pixels::Hashed(len, content))
}

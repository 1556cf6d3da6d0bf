//! What an array is, apart from its bytes: element type and shape.

use crate::error::{Error, Result};

/// Arrays of more axes than numpy allows are refused.
pub const MAX_RANK: usize = 64;

/// Element type: numpy's own token (`"<f4"`, `"|u1"`, `"<M8[ns]"`, `"bfloat16"`, or the text of a
/// structured descriptor) and the bytes of one element. The core never interprets the token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DType {
    token: Token,
    itemsize: usize,
}

/// Nearly every token is a few characters, and every array that is stored has one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Token {
    Short { len: u8, text: [u8; 14] },
    Long(Box<str>),
}

impl DType {
    /// An element type; `itemsize` may be 0 (numpy's empty strings).
    pub fn new(token: &str, itemsize: usize) -> Self {
        let mut text = [0; 14];
        let token = match text.get_mut(..token.len()) {
            Some(room) => {
                room.copy_from_slice(token.as_bytes());
                Token::Short { len: token.len() as u8, text }
            }
            None => Token::Long(token.into()),
        };
        Self { token, itemsize }
    }

    /// Numpy's token for this type.
    pub fn token(&self) -> &str {
        match &self.token {
            Token::Short { len, text } => {
                str::from_utf8(&text[..usize::from(*len)]).unwrap_or_default()
            }
            Token::Long(text) => text,
        }
    }

    /// Bytes of one element.
    pub fn itemsize(&self) -> usize {
        self.itemsize
    }
}

/// Element type and shape of a C-contiguous array whose size is known to fit in memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Layout {
    dtype: DType,
    shape: Shape,
    nbytes: usize,
}

/// Few arrays have more axes than fit in here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Shape {
    Short { rank: u8, axes: [usize; 5] },
    Long(Box<[usize]>),
}

impl Shape {
    fn new(shape: &[usize]) -> Self {
        let mut axes = [0; 5];
        match axes.get_mut(..shape.len()) {
            Some(room) => {
                room.copy_from_slice(shape);
                Self::Short { rank: shape.len() as u8, axes }
            }
            None => Self::Long(shape.into()),
        }
    }
}

impl Layout {
    /// Checks rank and byte size.
    ///
    /// # Errors
    /// [`Error::Layout`] when the rank exceeds [`MAX_RANK`] or the size overflows `isize`.
    pub fn new(dtype: DType, shape: &[usize]) -> Result<Self> {
        if shape.len() > MAX_RANK {
            return Err(Error::Layout(format!("{} axes, at most {MAX_RANK}", shape.len())));
        }
        let mut elements = 1usize;
        // Numpy multiplies the non-zero axes: an empty array must still be addressable.
        for &n in shape.iter().filter(|&&n| n != 0) {
            elements = elements.checked_mul(n).ok_or_else(|| too_large(shape))?;
        }
        let bytes = elements.checked_mul(dtype.itemsize).filter(|&b| isize::try_from(b).is_ok());
        let bytes = bytes.ok_or_else(|| too_large(shape))?;
        let nbytes = if shape.contains(&0) { 0 } else { bytes };
        Ok(Self { dtype, shape: Shape::new(shape), nbytes })
    }

    /// Element type.
    pub fn dtype(&self) -> &DType {
        &self.dtype
    }

    /// Lengths of the axes, outermost first.
    pub fn shape(&self) -> &[usize] {
        match &self.shape {
            Shape::Short { rank, axes } => &axes[..usize::from(*rank)],
            Shape::Long(axes) => axes,
        }
    }

    /// Bytes of all elements.
    pub fn nbytes(&self) -> usize {
        self.nbytes
    }
}

fn too_large(shape: &[usize]) -> Error {
    Error::Layout(format!("shape {shape:?} is larger than the address space"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let f4 = DType::new("<f4", 4);
        assert_eq!(Layout::new(f4.clone(), &[2, 3]).map(|l| l.nbytes()), Ok(24));
        assert_eq!(Layout::new(f4.clone(), &[]).map(|l| l.nbytes()), Ok(4));
        assert_eq!(Layout::new(f4.clone(), &[0, 7]).map(|l| l.nbytes()), Ok(0));
        assert!(Layout::new(f4.clone(), &[usize::MAX, 2]).is_err());
        assert!(Layout::new(f4.clone(), &[0, usize::MAX, 2]).is_err());
        assert!(Layout::new(f4, &[1; 65]).is_err());
    }
}

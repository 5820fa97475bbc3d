//! Parts of a tensor, so that a tensor-parallel rank reads no more of a file than it computes with.

use std::{borrow::Cow, ops::Range};

use super::{Tensor, TensorError};

impl Tensor<'_> {
    /// The rows of `ranges`, one range after the other. A single range is a view of the file, several are copied.
    ///
    /// # Errors
    /// [`TensorError::Outside`].
    pub fn rows(mut self, ranges: &[Range<usize>]) -> Result<Self, TensorError> {
        let rows = self.shape.first().copied().unwrap_or(1);
        self.check("rows", rows, ranges)?;
        let size = self.bytes.len() / rows.max(1);
        let bytes = |range: &Range<usize>| range.start * size..range.end * size;
        self.bytes = match (self.bytes, ranges) {
            (Cow::Borrowed(all), [range]) => Cow::Borrowed(&all[bytes(range)]),
            (all, _) => ranges.iter().flat_map(|range| &all[bytes(range)]).copied().collect(),
        };
        if let Some(rows) = self.shape.first_mut() {
            *rows = ranges.iter().map(Range::len).sum();
        }
        Ok(self)
    }

    /// The columns of `range` of a matrix, copied.
    ///
    /// # Errors
    /// [`TensorError::Outside`].
    pub fn columns(mut self, range: Range<usize>) -> Result<Self, TensorError> {
        let columns = self.shape.last().copied().unwrap_or(1);
        self.check("columns", columns, std::slice::from_ref(&range))?;
        let size = self.dtype.size();
        let row = |row: &[u8]| row[range.start * size..range.end * size].to_vec();
        self.bytes = self.bytes.chunks_exact((columns * size).max(1)).flat_map(row).collect();
        if let Some(columns) = self.shape.last_mut() {
            *columns = range.len();
        }
        Ok(self)
    }

    fn check(&self, what: &'static str, size: usize, ranges: &[Range<usize>]) -> Result<(), TensorError> {
        let wrong = ranges.iter().find(|range| range.start > range.end || range.end > size);
        wrong.map_or(Ok(()), |range| {
            let (file, name) = (self.file.to_owned(), self.name.clone());
            Err(TensorError::Outside { file, name, what, range: range.clone(), size })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::Dtype;

    fn tensor(bytes: &[u8]) -> Tensor<'_> {
        Tensor::new("w", Path::new("f"), Dtype::F32, vec![4, 3], Cow::Borrowed(bytes))
    }

    fn bytes() -> Vec<u8> {
        (0..12).flat_map(|i| (i as f32).to_le_bytes()).collect()
    }

    #[test]
    fn one_range_of_rows_is_a_view_and_several_are_joined() {
        let bytes = bytes();
        let view = tensor(&bytes).rows(std::slice::from_ref(&(1..3))).unwrap();
        assert_eq!((view.shape.as_slice(), view.to_f32()), (&[2, 3][..], vec![3., 4., 5., 6., 7., 8.]));
        assert!(matches!(view.bytes, Cow::Borrowed(_)));
        let joined = tensor(&bytes).rows(&[3..4, 0..1, 3..4]).unwrap();
        let expected = vec![9., 10., 11., 0., 1., 2., 9., 10., 11.];
        assert_eq!((joined.shape.as_slice(), joined.to_f32()), (&[3, 3][..], expected));
    }

    #[test]
    fn columns_are_taken_of_every_row() {
        let bytes = bytes();
        let right = tensor(&bytes).columns(1..3).unwrap();
        let expected = vec![1., 2., 4., 5., 7., 8., 10., 11.];
        assert_eq!((right.shape.as_slice(), right.to_f32()), (&[4, 2][..], expected));
        assert!(tensor(&bytes).columns(3..3).unwrap().is_empty());
    }

    #[test]
    fn what_lies_outside_is_refused() {
        let bytes = bytes();
        let error = tensor(&bytes).rows(&[0..1, 2..5]).unwrap_err().to_string();
        assert_eq!(error, "tensor `w` in `f` has 4 rows, there are none of 2..5");
        let error = tensor(&bytes).columns(2..4).unwrap_err().to_string();
        assert_eq!(error, "tensor `w` in `f` has 3 columns, there are none of 2..4");
    }
}

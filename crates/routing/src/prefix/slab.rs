//! Values under stable `u32` ids, in pages: growing never moves what is there, so it never pauses for a copy.

/// 128 cells to a page: a page of nodes is 4 KB, which allocators serve without loss (32 KB pages cost mimalloc a
/// quarter more than they hold).
const PAGE_BITS: u32 = 7;
const PAGE: usize = 1 << PAGE_BITS;

/// A paged slab. Freed cells hold `T::default()` and are reused, last freed first; pages are given back only
/// by dropping the slab.
#[derive(Debug)]
pub(super) struct Slab<T> {
    pages: Vec<Box<[T; PAGE]>>,
    free: Vec<u32>,
}

impl<T: Default> Slab<T> {
    pub(super) fn new() -> Self {
        Self { pages: Vec::new(), free: Vec::new() }
    }

    /// Keeps `value` and gives its id.
    pub(super) fn insert(&mut self, value: T) -> u32 {
        if self.free.is_empty() {
            self.add_page();
        }
        let id = self.free.pop().unwrap_or_default();
        self[id] = value;
        id
    }

    /// Takes the value out; its id may be given to another from now on.
    pub(super) fn remove(&mut self, id: u32) -> T {
        self.free.push(id);
        std::mem::take(&mut self[id])
    }

    /// Cells that hold a value.
    pub(super) fn len(&self) -> usize {
        self.pages.len() * PAGE - self.free.len()
    }

    /// Bytes of pages and of the list of free cells, without what the values point to.
    pub(super) fn memory_bytes(&self) -> usize {
        self.pages.len() * size_of::<[T; PAGE]>() + self.free.capacity() * size_of::<u32>()
    }

    /// All cells, free ones too.
    #[cfg(test)]
    pub(super) fn cells(&self) -> impl Iterator<Item = (u32, &T)> {
        self.pages.iter().flat_map(|page| page.iter()).enumerate().map(|(id, value)| (id as u32, value))
    }

    fn add_page(&mut self) {
        let start = (self.pages.len() * PAGE) as u32;
        let page: Box<[T]> = std::iter::repeat_with(T::default).take(PAGE).collect();
        let Ok(page) = page.try_into() else { unreachable!("a page has PAGE cells") };
        self.pages.push(page);
        self.free.extend((start..start + PAGE as u32).rev());
    }
}

impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;

    #[inline]
    fn index(&self, id: u32) -> &T {
        &self.pages[(id >> PAGE_BITS) as usize][id as usize & (PAGE - 1)]
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    #[inline]
    fn index_mut(&mut self, id: u32) -> &mut T {
        &mut self.pages[(id >> PAGE_BITS) as usize][id as usize & (PAGE - 1)]
    }
}

// How a worker's part of a matrix product is cut so that what is packed stays in caches, and the scratch that it takes.
//
// Invariant: depends on sizes and on the machine alone.
#pragma once
#include "gemm_kernels.h"

namespace pg {

// Whether the columns of A lie dense, not its rows: rows are packed then.
PG_INLINE bool gemm_is_transposed(long a_row, long a_col) { return a_row == 1 && a_col != 1; }

// How a worker's rectangle is cut. A block of B, k by columns, is packed, or read where it lies, and stays in L2 while all rows of A pass
// by, one tile of them at a time. Where k is cut, the sums of a block of rows wait in scratch.
template <class T> struct gemm_cut {
  typedef gemm_tile<T> tile;
  // Tiles of rows that are packed together where A lies transposed: whole lines of it are read.
  enum { group = 8, run = 4, most_columns = 1024, most_cut_columns = 512, most_rows = 1024 };
  // Half of L2 for B, and as deep as then leaves room for many columns: each cut of k stores and loads all sums once more,
  // each cut of columns reads A, and packs it, once more. Measured with 1 MiB, 256 rows and B [4096, 1024]: 13 % faster than cut
  // for 512 KiB. Three quarters where all columns then are one block: A [2304, 256] transposed and B [256, 768] take 3 % less.
  enum { kept_b = PG_L2_KIB * 512 / int(sizeof(T)), kept_whole_b = PG_L2_KIB * 768 / int(sizeof(T)) };
  // A tile's rows stay in L1. Where that has 48 KiB, twice as many k are taken at once: 256 x 768 x 3072 takes 3 % less, B in less of
  // L2 beside its next part. Not where rows are packed, once for each block of columns, if all columns then are not one block; nor where
  // they come from memory: 256 x 768 x 50257 took 8 % longer, and up to 2 % where they come once for all blocks.
  enum { is_deep = PG_L2_KIB >= 1024 && PG_L1_KIB >= 48, kept_deep_b = PG_L2_KIB * 448 / int(sizeof(T)) };
  enum { most_k = (PG_L2_KIB < 1024 ? 1536 : 2048) / int(sizeof(T)), most_deep_k = is_deep ? 4096 / int(sizeof(T)) : int(most_k) };
  long k_blocks, k, columns, column_blocks, row_blocks, rows;
  bool comes_from_memory;  // what is read of A
  long at_once;  // So many blocks of columns pass by for each cut of k: A comes from memory once for all of them.
  bool b_stays;  // in L2 where it lies, from tile to tile
  bool reads_b;  // where it lies, but for a panel that is not full

  PG_INLINE gemm_cut(long all_rows, long K, long all_columns, bool packs_rows, long b_row, long b_col) {
    const bool is_whole = K <= most_deep_k && all_columns <= whole_columns(padded(K)), goes_deep = is_deep && !packs_rows;
    comes_from_memory = all_rows * K * long(sizeof(T)) > PG_L2_KIB * 16384L;
    set(all_rows, K, is_whole || (goes_deep && !comes_from_memory) ? most_deep_k : most_k);
    const long part = (goes_deep ? long(kept_deep_b) : long(kept_b)) / (k ? k : 1) / tile::width * tile::width;
    const long most_part = most_cut_columns / tile::width * tile::width;
    columns = all_columns <= whole_columns(k) && (k_blocks == 1 || !goes_deep) ? whole_columns(k) : part < most_part ? part : most_part;
    const long panels = (all_columns + tile::width - 1) / tile::width;
    column_blocks = blocks_of(panels, columns / tile::width);
    at_once = 1;
    if (comes_from_memory && k_blocks > 1) {
      // Sums of several blocks wait together as far as L2 takes them: of 1024 rows and three blocks that took up to 3 % longer, of 256 and
      // two it takes 1.5 % less. They lie where less of B is packed at once than scratch is for.
      const long usual = gemm_cut(all_rows, K, most_k).elements(), left = usual - 2 * packed_b() - 2 * packed_group();
      const long stay = PG_L2_KIB * 1024L / long(sizeof(T)), most = (left < stay ? left : stay) / sums();
      at_once = most < 1 ? 1 : most < column_blocks ? most : column_blocks;
    }
    const long block_columns = (panels + column_blocks - 1) / column_blocks * tile::width;
    const long kept_columns = block_columns < all_columns ? block_columns : all_columns;
    // What comes from memory is packed: a whole B of more than 8 MiB, with 1 MiB of L2, took 6 % longer where it lies.
    const bool is_near = K * all_columns * long(sizeof(T)) <= PG_L2_KIB * 8192L;
    b_stays = b_col == 1 && is_near && gemm_stays(K < k ? K : k, kept_columns * long(sizeof(T)), b_row * long(sizeof(T)));
    reads_b = b_stays || (b_col == 1 && rows <= gemm_few_tiles<T>(k, b_row, is_near) * tile::rows);
  }
  // What there is at most, whatever the columns and whether rows are packed.
  PG_INLINE gemm_cut(long all_rows, long K, long most) {
    set(all_rows, K, most);
    columns = whole_columns(k);
  }
  // The parts of B, some k of a block of columns each, in their order.
  struct part_place {
    long k, across, first_across;  // its first k, its block of columns, the first block of those at once
  };
  PG_INLINE part_place part_at(long number) const {
    const long first = number / (at_once * k_blocks) * at_once, left = column_blocks - first, count = left < at_once ? left : at_once;
    const long within = number % (at_once * k_blocks);
    return {within / count * k, first + within % count, first};
  }
  PG_INLINE void set(long all_rows, long K, long most) {
    k_blocks = blocks_of(K, most);
    k = padded((K + k_blocks - 1) / k_blocks);
    row_blocks = k_blocks > 1 ? blocks_of(all_rows, most_rows) : 1;
    rows = (all_rows + row_blocks - 1) / row_blocks;
  }
  static PG_INLINE long padded(long k) { return (k + PG_LANES - 1) / PG_LANES * PG_LANES; }
  static PG_INLINE long whole_columns(long k) {
    const long columns = kept_whole_b / (k ? k : 1);
    return (columns < most_columns ? columns : long(most_columns)) / tile::width * tile::width;
  }
  static PG_INLINE long blocks_of(long extent, long most) { return extent > most ? (extent + most - 1) / most : 1; }
  PG_INLINE long packed_b() const { return k * columns; }
  PG_INLINE long packed_group() const { return group * packed_tile(); }
  PG_INLINE long packed_tile() const { return tile::rows * (k + PG_LANES); }
  PG_INLINE long sums() const { return (k_blocks > 1 ? rows : long(tile::rows)) * columns; }
  PG_INLINE long elements() const { return 2 * packed_b() + 2 * packed_group() + sums(); }
};

// Bytes of scratch for one worker that computes `rows` rows. With width = vectors * lanes of the tile, and of k at most `bytes`,
// 1536 or, where L2 has 1 MiB, 2048,
//   k_blocks = max(1, ceil(K / (bytes / sizeof(T)))), k = ceil(K / k_blocks) rounded up to lanes,
//   columns = min(1024, 3 / 4 L2 / sizeof(T) / k) rounded down to width, kept = rows / ceil(rows / 1024) rounded up:
//   sizeof(T) * (2 * k * columns + 16 * tile_rows * (k + lanes) + (kept if k_blocks > 1 else tile_rows) * columns)
// rounded up to 64; where L1 has 48 KiB as well, as much with 4096 if that is more. The scratch must be aligned to 64 bytes.
template <class T> inline long gemm_scratch(long rows, long K) {
  typedef gemm_cut<T> cut;
  const long usual = cut(rows, K, cut::most_k).elements(), deep = cut(rows, K, cut::most_deep_k).elements();
  return ((usual > deep ? usual : deep) * long(sizeof(T)) + 63) / 64 * 64;
}

}  // namespace pg

// How a worker goes through its part of a matrix product: in blocks that stay in caches, tile by tile, and then through what others
// have not come to yet.
//
// Invariant: the sums of a tile are the same whoever computes them, and of however many blocks.
#pragma once
#include "gemm_kernels.h"
#include "queue.h"

extern "C" int sched_yield() noexcept;

namespace pg {

// How a worker's rectangle is cut. A block of B, k by columns, is packed and stays in L2 while all rows
// of A pass by, one tile of them at a time: so what an epilogue reads and writes are whole runs of the block's columns, not
// a tile's width in each row. Where k is cut, the sums of a block of rows wait in scratch.
template <class T> struct gemm_cut {
  typedef gemm_tile<T> tile;
  // Tiles of rows that are packed together where A lies transposed: whole lines of it are read.
  enum { group = 8, run = 4, most_columns = 1024, most_cut_columns = 512, most_rows = 1024 };
  // Half of L2 for B, and as deep as then leaves room for many columns: each cut of k stores and loads all sums once more,
  // each cut of columns reads A, and packs it, once more. Measured with 1 MiB, 256 rows and B [4096, 1024]: 13 % faster than cut
  // for 512 KiB. Three quarters where all columns then are one block: A [2304, 256] transposed and B [256, 768] take 3 % less.
  enum { kept_b = PG_L2_KIB * 512 / int(sizeof(T)), kept_whole_b = PG_L2_KIB * 768 / int(sizeof(T)) };
  // A tile's rows stay in L1. Where that has 48 KiB, twice as many k are taken at once if all columns then still are one block: A
  // [200, 784] and 128 columns take 4 % less; A [4096, 1024] and 256 columns, in two blocks, would take 5 % more.
  enum { most_k = (PG_L2_KIB < 1024 ? 1536 : 2048) / int(sizeof(T)) };
  enum { most_whole_k = PG_L2_KIB < 1024 || PG_L1_KIB < 48 ? int(most_k) : 4096 / int(sizeof(T)) };
  long k_blocks, k, columns, row_blocks, rows;

  // Without `all_columns`, the largest that there may be where k is cut.
  PG_INLINE gemm_cut(long all_rows, long K, long all_columns = 0) {
    const bool is_whole = all_columns > 0 && K <= most_whole_k && all_columns <= whole_columns(padded(K));
    k_blocks = is_whole ? 1 : blocks_of(K, most_k);
    k = padded((K + k_blocks - 1) / k_blocks);
    const long part = kept_b / (k ? k : 1) / tile::width * tile::width, most_part = most_cut_columns / tile::width * tile::width;
    columns = all_columns <= whole_columns(k) ? whole_columns(k) : part < most_part ? part : most_part;
    row_blocks = blocks_of(all_rows, most_rows);
    rows = (all_rows + row_blocks - 1) / row_blocks;
  }
  static PG_INLINE long padded(long k) { return (k + PG_LANES - 1) / PG_LANES * PG_LANES; }
  static PG_INLINE long whole_columns(long k) {
    const long columns = kept_whole_b / (k ? k : 1);
    return (columns < most_columns ? columns : long(most_columns)) / tile::width * tile::width;
  }
  static PG_INLINE long blocks_of(long extent, long most) { return extent > most ? (extent + most - 1) / most : 1; }
  PG_INLINE long packed_b() const { return k * columns; }
  PG_INLINE long packed_tile() const { return tile::rows * (k + PG_LANES); }
  PG_INLINE long sums() const { return (k_blocks > 1 ? rows : long(tile::rows)) * columns; }
  PG_INLINE long elements() const { return packed_b() + group * packed_tile() + sums(); }
};

// Bytes of scratch for one worker that computes `rows` rows. With width = vectors * lanes of the tile, and of k at most `bytes`,
// 1536 or, where L2 has 1 MiB, 2048,
//   k_blocks = max(1, ceil(K / (bytes / sizeof(T)))), k = ceil(K / k_blocks) rounded up to lanes,
//   columns = min(1024, 3 / 4 L2 / sizeof(T) / k) rounded down to width, kept = rows / ceil(rows / 1024) rounded up:
//   sizeof(T) * (k * columns + 8 * tile_rows * (k + lanes) + (kept if k_blocks > 1 else tile_rows) * columns)
// rounded up to 64; where L1 has 48 KiB as well, and K no more than 4096 bytes, as much with 4096 if that is more. The scratch must
// be aligned to 64 bytes.
template <class T> inline long gemm_scratch(long rows, long K) {
  const gemm_cut<T> cut(rows, K), whole(rows, K, 1);
  const long elements = cut.elements() > whole.elements() ? cut.elements() : whole.elements();
  return (elements * long(sizeof(T)) + 63) / 64 * 64;
}

// to[t][k][r] = a[k * a_col + r of tile t], k < K, for tiles begin … end: tile t is rows first_row(t) … first_row(t + 1). Rows
// from `safe` on are not A's. Eight k at a time: as many lines as L1 keeps where they lie a power of two apart.
template <class T, class FirstRow>
PG_INLINE void gemm_pack_rows(T* to, long to_tile, const T* a, long a_col, long K, long begin, long end, long safe, const FirstRow& first_row) {
  for (long block = 0; block < K; block += 8) {
    const long block_end = K - block < 8 ? K : block + 8;
    const T *const first = a + first_row(begin), *const last = a + first_row(end);
    for (long k = block_end; k < K && k < block_end + 8; ++k)
      for (const T* line = first + k * a_col; line < last + k * a_col; line += 64 / sizeof(T)) __builtin_prefetch(line, 0, 2);
    for (long t = begin; t < end; ++t) {
      const long row = first_row(t), count = first_row(t + 1) - row;
      T* packed = to + (t - begin) * to_tile + block * count;
      if (count == gemm_tile<T>::rows) {
        // A whole vector's store would cross a line at every other k.
        for (long k = block; k < block_end; ++k, packed += gemm_tile<T>::rows)
          __builtin_memcpy(packed, a + k * a_col + row, gemm_tile<T>::rows * sizeof(T));
      } else if (row + (gemm_tile<T>::rows + PG_LANES - 1) / PG_LANES * PG_LANES <= safe) {
        // What is written behind a tile's rows, the next k replaces.
        for (long k = block; k < block_end; ++k, packed += count)
          PG_UNROLL for (int r = 0; r < gemm_tile<T>::rows; r += PG_LANES) store_plain(packed + r, load_plain(a + k * a_col + row + r));
      } else {
        for (long k = block; k < block_end; ++k, packed += count)
          for (long r = 0; r < count; ++r) packed[r] = a[k * a_col + row + r];
      }
    }
  }
}

// A matrix as large as C that an epilogue writes, or that it reads beside such: element (m, n) lies `size` bytes long at
// start + m * row + n * size.
struct gemm_update {
  const void* start;
  long row, size;
};

// A part of an operand that will be packed: what is left of it to be asked for, in shares of `calls` micro-kernels.
struct gemm_coming {
  const char* start;
  long rows, row_bytes, stride, share, row, byte;

  PG_INLINE void set(const void* to, long to_rows, long to_row_bytes, long to_stride, long calls) {
    *this = {static_cast<const char*>(to), to_rows, to_row_bytes, to_stride, (to_rows * ((to_row_bytes + 63) / 64) + calls - 1) / calls, 0, 0};
  }
  PG_INLINE void add_to(gemm_lines& lines) {
    long left = share < gemm_lines::most - lines.count ? share : gemm_lines::most - lines.count;
    while (left > 0 && row < rows) {
      const char* line = start + row * stride + byte;
      const long of_row = (row_bytes - byte + 63) / 64, count = of_row < left ? of_row : left;
      for (long i = 0; i < count; ++i, line += 64) lines.line[lines.count + i] = line;
      lines.count += count;
      left -= count;
      byte += 64 * count;
      if (count == of_row) byte = 0, ++row;
    }
  }
};

// A worker's tiles, counted on over all parts of k or blocks of columns. Where k is cut, their sums wait in one place, and tiles are
// open once their sums so far are complete.
struct alignas(64) gemm_queue {
  long taken;  // by whomever
  long open, done_by_others;
  void* sums;
};
static_assert(sizeof(gemm_queue) == sizeof(work_queue), "a plan gives a kernel and a worker one line of cache");

// The workers who share the rows of a product, in the order of their shares. `size` 1: nobody takes of another's.
struct gemm_team {
  gemm_queue* queues = nullptr;  // of each member
  long rows = 0;                 // of C
  int index = 0, size = 1;
};

// The walk over one worker's rectangle: blocks of C, in each block tiles of rows; after next(), or tile(), its sums lie at `sums`.
template <class T> struct gemm_walk {
  typedef gemm_tile<T> tile_size;
  const T *A, *B;
  long M, K, a_row, a_col, b_row, b_col, row_begin, row_end, col_begin, col_end;
  T* scratch;
  const gemm_update* updates;
  int update_count;
  enum { most_updates = 4 };
  gemm_team team;
  gemm_cut<T> cut;
  bool keeps_sums;  // of all tiles of a block
  long vectors, panels, column_blocks;  // of the rectangle
  long block, first_row, block_rows, tiles, first_panel, block_panels, col, columns, stride;  // of the block
  long k_begin, k_count;
  long tile_first, tile_next, tile_end;  // The tiles that next() goes through before it enters a block or takes more.
  int owner;                             // of these tiles, in the team
  T* owners_sums;                        // where they wait
  long taken;                            // of its own tiles
  long joined;                           // N where rows of sums may follow each other, or 0
  struct panel_place {
    const T* b;
    long b_k, vectors, first;  // its first column, from the block's
  } place[gemm_cut<T>::most_columns / PG_LANES];
  long row, rows;  // of the tile, the row within the block
  const T* sums;
  // Of operands that do not stay in L2, what is read next comes while what was read before is multiplied.
  bool is_far;
  // Of updated matrices that do not stay in L3, lines come to L2 only: to L1 they are too long on their way, and hold up others.
  // Measured with 32 MiB of L3: those of 12 MiB and more take 2 to 4 % longer when they are asked for to be written, of 4 MiB
  // 0.5 % less. Not so where L1 has 48 KiB: 16 MiB each of three, rows of 4 KiB, take 4 % less that way, rows of 16 KiB as long.
  bool is_vast;
  gemm_coming coming_a, coming_b;

  PG_NOINLINE gemm_walk(long M, long K, const T* A, long a_row, long a_col, const T* B, long b_row, long b_col, T* scratch, long row_begin,
                        long row_end, long col_begin, long col_end, const gemm_update* updates, int update_count, bool keeps_sums,
                        gemm_team team)
      : A(A), B(B), M(M), K(K), a_row(a_row), a_col(a_col), b_row(b_row), b_col(b_col), row_begin(row_begin), row_end(row_end),
        col_begin(col_begin), col_end(col_end), scratch(scratch), updates(updates),
        update_count(update_count < most_updates ? update_count : int(most_updates)), team(team),
        cut(row_end - row_begin, K, col_end - col_begin), keeps_sums(keeps_sums || cut.k_blocks > 1), block(-1), tile_next(0), tile_end(0),
        owner(team.index), owners_sums(kept()), taken(0), joined(0) {
    vectors = (col_end - col_begin + PG_LANES - 1) / PG_LANES;
    panels = (vectors + tile_size::vectors - 1) / tile_size::vectors;
    column_blocks = gemm_cut<T>::blocks_of(panels, cut.columns / tile_size::width);
    // Only where k is cut do the sums of rows wait; others can finish them where they are all of a worker's.
    if (!is_cut()) cut.row_blocks = 1;
    else if ((team.rows + team.size - 1) / team.size > gemm_cut<T>::most_rows || column_blocks > 1) this->team.size = 1;
    is_far = K * (row_end - row_begin + col_end - col_begin) * long(sizeof(T)) > PG_L2_KIB * 1024L;
    is_vast = PG_L1_KIB < 48 && update_count * (row_end - row_begin) * (col_end - col_begin) * long(sizeof(T)) > 2 * PG_L2_KIB * 1024L;
    coming_a = coming_b = gemm_coming{};
  }

  // Whether the sums of a whole row of N can follow those of the row before at once. Then they do: what a kernel stores behind the
  // last column, the next row replaces, or the panel of its first columns, which is summed later.
  PG_INLINE bool joins_rows() const { return columns == joined && !is_cut(); }

  // The sums of the block's first row, or of the tile's.
  PG_INLINE T* kept() const { return scratch + cut.packed_b() + cut.group * cut.packed_tile(); }
  PG_INLINE long blocks() const { return cut.row_blocks * column_blocks; }
  PG_INLINE bool is_cut() const { return cut.k_blocks > 1; }
  PG_INLINE bool packs_rows() const { return a_row == 1 && a_col != 1; }
  // Rows of A that lie transposed are read where they lie for fewer panels. Elements of one whole half pages apart fall into so few
  // sets that even L2 loses them from panel to panel: A [512, 1024] and 128 columns took 1.25 times as long.
  PG_INLINE long least_panels_of_packed_rows() const { return a_col * long(sizeof(T)) % 2048 == 0 ? 2 : 4; }
  PG_INLINE long panel_col(long p) const { return even_cut(vectors, panels, p) * PG_LANES; }
  PG_INLINE long tile_row(long t) const { return even_cut(block_rows, tiles, t); }

  // Goes on to the next tile of rows whose sums are complete; false when there is none left.
  PG_NOINLINE bool next() {
    do {
      if (tile_next == tile_end) {
        if (team.size > 1) {
          if (!take()) return false;
        } else {
          if (block + 1 == blocks()) return false;
          enter(block + 1);
        }
      }
      tile(tile_next++);
    } while (k_begin + k_count < K);
    return true;
  }

  // Takes tiles of its own or, when there are none, of another member of the team.
  PG_NOINLINE bool take() {
    gemm_queue& own = team.queues[team.index];
    if (is_cut() && owner != team.index) __atomic_fetch_add(&team.queues[owner].done_by_others, tile_end - tile_first, __ATOMIC_RELEASE);
    if (is_cut() && block < 0) {
      own.sums = kept();
      set_columns(0);
      open_part(0);
    }
    for (;;) {
      for (int i = 0; i < team.size; ++i)
        if (take_of((team.index + i) % team.size)) return true;
      if (!is_cut()) return false;
      // What others do of its own lies in its scratch, and the next part of k comes on top of it.
      for (long turn = 0; taken + __atomic_load_n(&own.done_by_others, __ATOMIC_ACQUIRE) < own.open; ++turn)
        if (turn > 100) sched_yield();
      if (k_begin + k_count == K) return false;
      open_part(k_begin + k_count);
    }
  }

  PG_INLINE void open_part(long k) {
    gemm_queue& own = team.queues[team.index];
    set_rows_of(team.index);
    pack(k);
    __atomic_store_n(&own.open, own.open + tiles, __ATOMIC_RELEASE);
  }

  // Takes tiles of a member's: where k is cut, of the part of k that is packed.
  PG_INLINE bool take_of(int member) {
    gemm_queue& queue = team.queues[member];
    set_rows_of(member);
    const long end = is_cut() ? (k_begin / cut.k + 1) * tiles : column_blocks * tiles;
    if (is_cut() && __atomic_load_n(&queue.open, __ATOMIC_ACQUIRE) < end) return false;
    long position = __atomic_load_n(&queue.taken, __ATOMIC_RELAXED), first, count;
    do {
      if (position >= end) return false;
      // Several at once, fewer of them towards the end: taking waits for all that an epilogue has stored, 0.1 us. Tiles that are
      // packed together are taken together.
      const long parts = packs_rows() ? 2 : 3, most = packs_rows() ? cut.group : cut.run;
      first = position % tiles;
      count = (tiles - first + parts - 1) / parts;
      if (count > most) count = most;
    } while (!__atomic_compare_exchange_n(&queue.taken, &position, position + count, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    if (!is_cut() && position / tiles != block) set_columns(position / tiles);
    tile_next = tile_first = first;
    tile_end = first + count;
    owner = member;
    owners_sums = is_cut() ? static_cast<T*>(queue.sums) : kept();
    if (member == team.index) taken += count;
    return true;
  }

  PG_INLINE void set_rows_of(int member) {
    long begin, end;
    share(team.rows, 1, member, team.size, begin, end);
    set_rows(begin, end);
  }

  PG_INLINE void set_rows(long begin, long end) {
    first_row = begin;
    block_rows = end - begin;
    tiles = (block_rows + tile_size::rows - 1) / tile_size::rows;
  }

  // Enters a block of columns; all k of B are packed where they are not cut.
  PG_NOINLINE void set_columns(long across) {
    block = across;
    first_panel = even_cut(panels, column_blocks, across);
    block_panels = even_cut(panels, column_blocks, across + 1) - first_panel;
    col = col_begin + panel_col(first_panel);
    stride = panel_col(first_panel + block_panels) - panel_col(first_panel);
    columns = col_end - col < stride ? col_end - col : stride;
    if (joins_rows()) stride = columns;
    if (!is_cut()) pack(0);
  }

  // Enters a block: afterwards its sums lack the last block of k, whose part of B is packed.
  PG_NOINLINE void enter(long number) {
    const long down = number / column_blocks, all_rows = row_end - row_begin, begin = even_cut(all_rows, cut.row_blocks, down);
    set_rows(row_begin + begin, row_begin + even_cut(all_rows, cut.row_blocks, down + 1));
    tile_next = tile_first = 0;
    tile_end = tiles;
    set_columns(number % column_blocks);
    block = number;
    for (long k = 0; is_cut() && k < cut.k_blocks; ++k) {
      pack(k * cut.k);
      for (long t = 0; k + 1 < cut.k_blocks && t < tiles; ++t) tile(t);
    }
  }

  PG_NOINLINE void pack(long k) {
    k_begin = k;
    k_count = K - k < cut.k ? K - k : cut.k;
    T* to = scratch;
    for (long p = 0; p < block_panels; ++p) {
      const long column = col_begin + panel_col(first_panel + p), width = panel_col(first_panel + p + 1) - panel_col(first_panel + p);
      const long used = col_end - column < width ? col_end - column : width;
      const T* b = B + k_begin * b_row + column * b_col;
      const bool is_reused = block_rows > gemm_few_tiles * tile_size::rows && k_count * b_row * long(sizeof(T)) > gemm_resident_bytes;
      const bool is_packed = b_col != 1 || used != width || is_reused;
      if (is_packed) gemm_pack(to, width, b, b_row, b_col, k_count, used);
      place[p] = {is_packed ? to : b, is_packed ? width : b_row, width / PG_LANES, column - col};
      to += is_packed ? k_count * width : 0;
    }
    if (is_far) look_for_b(k, block);
  }

  // What pack() reads next: the next part of k, or of the next block.
  PG_NOINLINE void look_for_b(long k, long block) {
    long column = col, width = columns, next = k + cut.k;
    coming_b = gemm_coming{};
    if (next >= K) {
      if (++block == blocks()) return;
      const long across = block % column_blocks;
      column = col_begin + panel_col(even_cut(panels, column_blocks, across));
      width = col_begin + panel_col(even_cut(panels, column_blocks, across + 1)) - column;
      width = col_end - column < width ? col_end - column : width;
      next = 0;
    }
    const long depth = K - next < cut.k ? K - next : cut.k, size = sizeof(T), calls = tiles * block_panels;
    const T* const b = B + next * b_row + column * b_col;
    if (b_col == 1) coming_b.set(b, depth, width * size, b_row * size, calls);
    else if (b_row == 1) coming_b.set(b, width, depth * size, b_col * size, calls);
  }

  // What tile(begin) reads, and packs where it is more than one tile.
  PG_INLINE void look_for_a(long begin, long count) {
    coming_a = gemm_coming{};
    if (begin >= tiles) return;
    const long end = begin + count < tiles ? begin + count : tiles, from = tile_row(begin), next_rows = tile_row(end) - from;
    const long size = sizeof(T), calls = count * block_panels;
    const T* const next = A + (first_row + from) * a_row + k_begin * a_col;
    if (a_col == 1) coming_a.set(next, next_rows, k_count * size, a_row * size, calls);
    else if (a_row == 1) coming_a.set(next, k_count, next_rows * size, a_col * size, calls);
  }

  PG_NOINLINE void tile(long t) {
    row = tile_row(t);
    rows = tile_row(t + 1) - row;
    const T* a = A + (first_row + row) * a_row + k_begin * a_col;
    long a_stride = a_row, a_k = a_col, together = 1, within = 0;
    T* const packed = scratch + cut.packed_b();
    // Two panels read a tile's rows too seldom to pay for the copy: A [1024, 1024] and B [1024, 16] took 1.3 times as long with it.
    if (gemm_copies_rows && a_col == 1 && a_row * long(sizeof(T)) % 4096 == 0 && k_count >= 64 && block_panels >= 3) {
      a_stride = cut.k + PG_LANES;
      gemm_copy_rows(packed, a_stride, a, a_row, rows, k_count);
      a = packed;
    } else if (packs_rows() && block_panels >= least_panels_of_packed_rows()) {
      together = cut.group;
      within = (t - tile_first) % cut.group;
      if (within == 0)
        gemm_pack_rows(packed, cut.packed_tile(), A + first_row + k_begin * a_col, a_col, k_count, t,
                       t + cut.group < tile_end ? t + cut.group : tile_end, M - first_row, [&](long i) { return tile_row(i); });
      a = packed + within * cut.packed_tile();
      a_k = rows;
    }
    if (is_far && within == 0) look_for_a(t + together, together);
    const bool looks_ahead = (is_far || update_count > 0) && rows == tile_size::rows;
    T* const to = owners_sums + (keeps_sums ? row * stride : 0);
    const bool is_joined = stride % PG_LANES != 0;  // Then the last panel comes first.
    for (long i = 0; i < block_panels; ++i) {
      const long p = !is_joined ? i : i == 0 ? block_panels - 1 : i - 1;
      if (looks_ahead && place[p].vectors == tile_size::vectors)
        ahead(a, a_stride, a_k, place[p], to);
      else
        gemm_kernel_for<T, false>(int(rows), int(place[p].vectors))(k_count, a, a_stride, a_k, place[p].b, place[p].b_k, nullptr,
                                                                   to + place[p].first, stride, k_begin > 0);
    }
    sums = to;
  }

  // A whole panel of the tile, while the lines of all updated matrices under it come, if its sums are complete with it, and some of
  // what is read next.
  PG_NOINLINE void ahead(const T* a, long a_stride, long a_k, const panel_place& panel, T* to) {
    constexpr int row_lines = (tile_size::width * sizeof(T) + 63) / 64;
    static_assert(most_updates * tile_size::rows * row_lines <= gemm_lines::most, "a list of lines holds all updates");
    gemm_lines lines;
    long count = 0;
    for (int u = 0; u < update_count && k_begin + k_count == K; ++u) {
      const char* line = static_cast<const char*>(updates[u].start) + (first_row + row) * updates[u].row + (col + panel.first) * updates[u].size;
      PG_UNROLL for (int r = 0; r < tile_size::rows; ++r, line += updates[u].row)
        PG_UNROLL for (int i = 0; i < row_lines; ++i) lines.line[count++] = line + 64 * i;
    }
    lines.count = count;
    lines.written = is_vast ? 0 : count;
    coming_b.add_to(lines);
    coming_a.add_to(lines);
    gemm_kernel_ahead<T>(k_count, a, a_stride, a_k, panel.b, panel.b_k, to + panel.first, stride, k_begin > 0, lines);
  }
};

}  // namespace pg

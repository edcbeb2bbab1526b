// What micro-kernels do beside their sums: they ask for lines of memory that are needed next, and pack operands.
//
// Invariant: what is packed is a copy; nothing outside the operands' own elements is read.
#pragma once
#include "gemm_kernels.h"

namespace pg {

// What micro-kernels do on their way with lines of memory, row by row, each `share` of what is left: ask for them, to be written, into
// L1, or to be read, into L2; or pack what has been asked for, and ask for what follows: of A the lines of pairs of tiles, of B pairs of k
// of as many columns as a vector has lanes, which lie dense and are turned.
struct gemm_run {
  const char* line;
  long row_left, row_lines;  // lines of its row that are left, and that a row has
  long skip;                 // bytes from the end of a row to the next
  long left, share;
  enum run_kind { reads, writes, packs, turns } kind;
  // Of a packing, whose rows are those of two k, or a turning, whose rows are columns; bytes:
  char* to;
  long to_step, to_skip;  // from pair to pair, and in addition from one row's last to the next row's first
  long to_next;           // from tile to tile, or from one k to the next
  long column, ahead;     // from one k of A, or column of B, to the next, and to what is asked for

  PG_INLINE void set(const void* start, long rows, long row_bytes, long stride) {
    line = static_cast<const char*>(start);
    const bool is_aligned = (reinterpret_cast<unsigned long>(start) | (unsigned long)stride) % 64 == 0;
    row_left = row_lines = (row_bytes + 63) / 64 + !is_aligned;
    skip = stride - row_lines * 64;
    left = share = rows * row_lines;
    kind = reads;
  }
  // So many k of pairs of tiles, `stride` bytes apart, to tiles packed `tile` bytes apart, whose rows of one k are `tile_row` bytes.
  PG_INLINE void set_packing(const void* start, long k_count, long pairs, long stride, void* packed, long tile, long tile_row, long asks_ahead) {
    line = static_cast<const char*>(start);
    row_left = row_lines = pairs;
    skip = 2 * stride - pairs * 64;
    left = share = k_count / 2 * pairs;
    kind = packs;
    to = static_cast<char*>(packed);
    to_next = tile;
    to_step = 2 * tile;
    to_skip = 2 * tile_row - pairs * to_step;
    column = stride;
    ahead = asks_ahead;
  }
  // So many pairs of k, of so many vectors of columns `stride` bytes apart, to rows of `row` bytes.
  template <class T> PG_INLINE void set_turning(const void* start, long pairs, long vectors, long stride, void* packed, long row, long asks_ahead) {
    line = static_cast<const char*>(start);
    row_left = row_lines = pairs;
    skip = PG_LANES * stride - pairs * 2 * long(sizeof(T));
    left = share = pairs * vectors;
    kind = turns;
    to = static_cast<char*>(packed);
    to_step = 2 * row;
    to_skip = PG_LANES * long(sizeof(T)) - pairs * to_step;
    to_next = row;
    column = stride;
    ahead = asks_ahead;
  }
  PG_INLINE long due() const { return share < left ? share : left; }
  PG_INLINE void ask() {
    if (kind == writes) __builtin_prefetch(line, 1, 2);
    else __builtin_prefetch(line, 0, 2);
    line += 64;
    --left;
    if (--row_left == 0) {
      row_left = row_lines;
      line += skip;
    }
  }
  template <class T> PG_INLINE void pack() {
    gemm_pack_pair(reinterpret_cast<T*>(to), to_next / long(sizeof(T)), reinterpret_cast<const T*>(line), column / long(sizeof(T)));
    __builtin_prefetch(line + ahead, 0, 2);
    __builtin_prefetch(line + ahead + column, 0, 2);
    go_on(64);
  }
  template <class T> PG_INLINE void turn() {
    if constexpr (transposes_pairs<T>) transpose_pair<T>(line, column, to, to_next);
    // Each of the columns' next lines once while these are turned.
    const char* const next = line + ahead + left * 2 % PG_LANES * column;
    __builtin_prefetch(next, 0, 2);
    __builtin_prefetch(next + column, 0, 2);
    go_on(2 * sizeof(T));
  }
  PG_INLINE void go_on(long step) {
    line += step;
    to += to_step;
    --left;
    if (--row_left == 0) {
      row_left = row_lines;
      line += skip;
      to += to_skip;
    }
  }
};

// A tile of all rows, and on the way what is due of some runs, evenly: of more than the processor has under way at once, it forgets the most.
// All at the kernel's beginning, 256 x 768 x 3072 took 3 % longer. Runs of the kind PACKING pack: on its own that waits for L2, 5 cycles a
// vector, while here multiplications go on. A [4096, 1024] and [512, 1024] transposed, 256 and 128 columns, take 3 % less, and B [784, 128]
// transposed and 200 rows; copied like that, panels of B take as long.
template <class T, int VECTORS, gemm_run::run_kind PACKING>
PG_MICRO_KERNEL void gemm_kernel_ahead(long K, const T* a, long a_row, long a_k, const T* b, long b_k, T* tile, long tile_row, bool accumulate,
                                   gemm_run* run, gemm_run* end) {
  long total = 0;
  for (const gemm_run* r = run; r < end; ++r) total += r->due();
  const long every = total > 0 && K > total ? K / total : 1;
  constexpr bool is_turning = PACKING == gemm_run::turns;
  long until = 1, due = run < end ? run->due() : 0;
  // Not inlined at once, what does nothing but ask for lines is taken for what has no effect, and left out.
  const auto go_on = [&](long) __attribute__((always_inline)) {
    // Turning is kept out of the way, for the registers that it takes; what only asks takes 5 % longer there, with the lines of three matrices.
    if (is_turning ? __builtin_expect(--until == 0, false) : --until == 0) {
      while (due == 0 && ++run < end) due = run->due();
      if (due > 0) {
        if (PACKING == gemm_run::reads || run->kind != PACKING) run->ask();
        else if constexpr (PACKING == gemm_run::packs) run->pack<T>();
        else if constexpr (PACKING == gemm_run::turns) run->turn<T>();
        --due;
        until = every;
      }
    }
  };
  gemm_sums<T, gemm_tile<T>::rows, VECTORS, false, is_turning>(K, a, a_row, a_k, b, b_k, nullptr, tile, tile_row, accumulate, go_on);
}

}  // namespace pg

// Tiles for tensor cores, for steps that ask for precision tf32 or bf16: operands rounded to it, sums in f32. Whatever takes
// a tile of product.h, convolutions too, takes one of these.
//
// How: as in product.h, with the tile in shared memory as words along k, [line][word]: a word is one tf32 element or two
// bf16 ones, so that ldmatrix and the fragments are the same for both. An operand that lies in memory as it is needed (along
// k, 16 bytes at a time, f32 for tf32, bf16 for bf16) is copied by cp.async, Tile::stages - 1 steps ahead; any other goes
// through registers, one step ahead. One barrier a step.
//
// Invariants: those of product.h; operands are f32, bf16 or f16.
//
// Which tile, of tf32_precision or bf16_precision (result elements a block; dynamic shared memory, product_shared<T, Tile>):
//   tensor_tile_128     128 x 128, 60 KiB   both sides >= 128 and at least some 130 tiles
//   tensor_tile_128x64  128 x 64,  45 KiB   n <= 64, or too few tiles of 128
//   tensor_tile_64       64 x 64,  30 KiB   the usual one for layers of a few hundred units
//   tensor_tile_32x64    32 x 64,  23 KiB   m <= 32
#pragma once
#include "product.h"

namespace pg {

// Elements of a word, how it is made, and the tensor core's step: 16 x 8 sums over 8 words.
struct tf32_precision {
  enum { elements = 1 };
  typedef f32 storage;
  static __device__ __forceinline__ u32 word(const f32 (&x)[1]) { return bit_cast<u32>(x[0]); }
  // Rounded here, since a copied word is as it lay in memory.
  static __device__ __forceinline__ u32 operand(u32 word) { return pg_to_tf32(bit_cast<f32>(word)); }
  static __device__ __forceinline__ void multiply(f32 (&sum)[4], const u32 (&a)[4], const u32 (&b)[2]) { pg_mma_tf32(sum, a, b); }
};
struct bf16_precision {
  enum { elements = 2 };
  typedef bf16 storage;
  static __device__ __forceinline__ u32 word(const f32 (&x)[2]) { return pg_pack_bf16(x[0], x[1]); }
  static __device__ __forceinline__ u32 operand(u32 word) { return word; }
  static __device__ __forceinline__ void multiply(f32 (&sum)[4], const u32 (&a)[4], const u32 (&b)[2]) { pg_mma_bf16(sum, a, b); }
};

template <class Precision, int Rows, int Columns, int WarpRows, int WarpColumns, int Stages> struct tensor_tile {
  enum {
    rows = Rows,
    columns = Columns,
    warp_rows = WarpRows,
    warp_columns = WarpColumns,
    stages = Stages,
    words = 16,
    depth = words * Precision::elements,
    // Eight lines of 20 words begin in banks a multiple of 4 apart, all different: ldmatrix meets no conflict.
    stride = words + 4,
    row_steps = Rows / WarpRows / 16,
    column_steps = Columns / WarpColumns / 8,
    stage = (Rows + Columns) * stride,
    // A warp's 16 rows of sums, turned for the epilogue.
    turned_columns = Columns / WarpColumns,
    turned_stride = turned_columns + 8,
    turned = 16 * turned_stride,
    total_words = most(Stages * stage, PG_BLOCK / 32 * turned)
  };
  static_assert(WarpRows * WarpColumns * 32 == PG_BLOCK && row_steps * WarpRows * 16 == Rows && column_steps * WarpColumns * 8 == Columns &&
                    column_steps % 2 == 0,
                "the warps of a block must cover the tile");
  template <class T> struct shared {
    enum { bytes = 4 * total_words };
  };
};
template <class Precision> using tensor_tile_128 = tensor_tile<Precision, 128, 128, 2, 4, 3>;
template <class Precision> using tensor_tile_128x64 = tensor_tile<Precision, 128, 64, 4, 2, 3>;
template <class Precision> using tensor_tile_64 = tensor_tile<Precision, 64, 64, 2, 4, 3>;
template <class Precision> using tensor_tile_32x64 = tensor_tile<Precision, 32, 64, 2, 4, 3>;

// ---- from global to shared memory --------------------------------------------------------------------------------------

template <class A, class B> constexpr bool is_same = false;
template <class A> constexpr bool is_same<A, A> = true;

// Whether an operand is copied as it lies.
template <class Operand, class Precision> __device__ __forceinline__ constexpr bool is_copied() {
  return Operand::has_address && Operand::along_k && Operand::width * sizeof(typename Operand::storage) == 16 &&
         is_same<typename Operand::storage, typename Precision::storage>;
}

// Copies 16 bytes at a time by cp.async; a step lands some steps later.
template <class Operand, class Precision, int Lines, int Words> struct word_copier {
  enum { is_ahead = true, stride = Words + 4, chunks = Words / 4, total = Lines * chunks, slots = (total + PG_BLOCK - 1) / PG_BLOCK };
  typename Operand::line line[slots];
  bool is_inside[slots];

  __device__ __forceinline__ void start(const Operand& operand, long batch, long first, long extent) {
#pragma unroll
    for (int s = 0; s < slots; ++s) {
      const int q = threadIdx.x + s * PG_BLOCK;
      const long index = first + q / chunks;
      is_inside[s] = q < total && index < extent;
      line[s] = operand.line_of(batch, is_inside[s] ? index : 0);
    }
  }
  __device__ __forceinline__ void copy(const Operand& operand, long k, long end, u32* shared) const {
#pragma unroll
    for (int s = 0; s < slots; ++s) {
      const int q = threadIdx.x + s * PG_BLOCK;
      if (total % PG_BLOCK != 0 && q >= total) continue;
      const long at = k + q % chunks * 4 * Precision::elements;
      const bool is_read = is_inside[s] && at < end;
      pg_cp_async16(shared + q / chunks * stride + q % chunks * 4, operand.address(line[s], is_read ? at : 0), is_read ? 16 : 0);
    }
  }
  __device__ __forceinline__ void fetch(const Operand&, long, long) {}
  template <class Shared> __device__ __forceinline__ void put(Shared&, int) const {}
};

// Makes words on the way through registers.
template <class Operand, class Precision, int Lines, int Words> struct word_mover {
  enum {
    is_ahead = false,
    along_k = Operand::along_k,
    elements = Precision::elements,
    stride = Words + 4,
    // Across lines two at a time at most: wider stores into [line][word] would meet in the same banks.
    width = along_k ? int(Operand::width) : least(Operand::width, 2),
    // What a thread makes of one slot: words of one line along k, or one word of each of `width` lines.
    slot_words = along_k ? most(width / elements, 1) : 1,
    slot_lines = along_k ? 1 : int(width),
    reads = along_k ? slot_words * elements / width : int(elements),
    total = Lines * Words / (slot_words * slot_lines),
    slots = (total + PG_BLOCK - 1) / PG_BLOCK,
    chunks = Words / slot_words,
    // Across lines a warp takes 8 slots beside and 4 words below each other: 4 whole sectors, 32 different banks.
    blocks_line = Lines / (8 * slot_lines),
    line_turns = most(blocks_line / 8, 1),
    lines = along_k ? slots : line_turns
  };
  static_assert(width % elements == 0 || elements % width == 0 || !along_k, "a word must be made of whole reads");
  typename Operand::line line[lines];
  bool is_inside[lines];
  f32 held[slots][reads][width];

  static __device__ __forceinline__ int line_at(int slot) {
    const int thread = threadIdx.x;
    if constexpr (bool(along_k)) return (thread + slot * PG_BLOCK) / chunks;
    else return ((blocks_line < 8 ? thread / 32 % blocks_line : thread / 32 + slot % line_turns * 8) * 8 + thread % 8) * slot_lines;
  }
  static __device__ __forceinline__ int word_at(int slot) {
    const int thread = threadIdx.x;
    if constexpr (bool(along_k)) return (thread + slot * PG_BLOCK) % chunks * slot_words;
    else return (blocks_line < 8 ? thread / 32 / blocks_line + slot * (8 / least(blocks_line, 8)) : slot / line_turns) * 4 + thread % 32 / 8;
  }
  static __device__ __forceinline__ bool is_mine(int slot) {
    if constexpr (total % PG_BLOCK == 0) return true;
    else if constexpr (bool(along_k)) return int(threadIdx.x) + slot * PG_BLOCK < total;
    else return word_at(slot) < Words;
  }

  __device__ __forceinline__ void start(const Operand& operand, long batch, long first, long extent) {
#pragma unroll
    for (int i = 0; i < lines; ++i) {
      const long index = first + line_at(i);
      is_inside[i] = index < extent;
      line[i] = operand.line_of(batch, is_inside[i] ? index : 0);
    }
  }
  __device__ __forceinline__ void copy(const Operand&, long, long, u32*) const {}
  __device__ __forceinline__ void fetch(const Operand& operand, long k, long end) {
#pragma unroll
    for (int s = 0; s < slots; ++s)
#pragma unroll
      for (int r = 0; r < reads; ++r) {
        const int l = along_k ? s : s % line_turns;
        const long at = k + word_at(s) * elements + r * (along_k ? int(width) : 1);
        if (is_inside[l] && at < end && is_mine(s)) {
          operand.template read<width>(line[l], at, held[s][r]);
        } else {
#pragma unroll
          for (int i = 0; i < width; ++i) held[s][r][i] = 0;
        }
      }
  }
  template <class Shared> __device__ __forceinline__ void put(Shared& shared, int offset) const {
#pragma unroll
    for (int s = 0; s < slots; ++s) {
      if (!is_mine(s)) continue;
      const int at = offset + line_at(s) * stride + word_at(s);
      u32 words[slot_words * slot_lines];
#pragma unroll
      for (int w = 0; w < slot_words * slot_lines; ++w) {
        f32 x[elements];
#pragma unroll
        for (int e = 0; e < elements; ++e)
          x[e] = along_k ? held[s][(w * elements + e) / width][(w * elements + e) % width] : held[s][e % reads][w % width];
        words[w] = Precision::word(x);
      }
      if constexpr (bool(along_k)) {
        write_shared<slot_words>(shared, at, words);
      } else {
#pragma unroll
        for (int i = 0; i < slot_lines; ++i) shared[at + i * stride] = words[i];
      }
    }
  }
};

template <bool IsCopied, class Operand, class Precision, int Lines, int Words> struct word_way {
  typedef word_mover<Operand, Precision, Lines, Words> type;
};
template <class Operand, class Precision, int Lines, int Words> struct word_way<true, Operand, Precision, Lines, Words> {
  typedef word_copier<Operand, Precision, Lines, Words> type;
};

// ---- products --------------------------------------------------------------------------------------------------------

// Sums of one tile over a range of k, handed over as epilogue(row, column, value).
template <class T, class Precision, int Rows, int Columns, int WarpRows, int WarpColumns, int Stages, class A, class B, class Epilogue>
__device__ __forceinline__ void sum_tile(element_type<T>, tensor_tile<Precision, Rows, Columns, WarpRows, WarpColumns, Stages>, long batch,
                                         long first_row, long M, long first_column, long N, k_range range, const A& a, const B& b,
                                         Epilogue&& epilogue) {
  typedef tensor_tile<Precision, Rows, Columns, WarpRows, WarpColumns, Stages> Tile;
  static_assert(sizeof(value_of<T>) == 4 && is_float<value_of<T>>, "tensor cores take f32, bf16 or f16");
  constexpr int depth = Tile::depth, stages = Stages;
  PG_DYNAMIC_SHARED(u32, shared);
  u32* const memory = &shared[0];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp / Tile::warp_columns, warp_column = warp % Tile::warp_columns;
  // Where this lane's rows for ldmatrix lie: matrices 0 … 3 are, of A, rows 0-7 and 8-15 of words 0-3, then of words 4-7; of
  // B, words 0-3 and 4-7 of columns 0-7, then of columns 8-15.
  const int a_at = (warp_row * (Tile::rows / Tile::warp_rows) + lane % 16) * Tile::stride + lane / 16 * 4;
  const int b_at = (Tile::rows + warp_column * (Tile::columns / Tile::warp_columns) + lane / 16 * 8 + lane % 8) * Tile::stride + lane / 8 % 2 * 4;

  f32 sum[Tile::row_steps][Tile::column_steps][4];
#pragma unroll
  for (int i = 0; i < Tile::row_steps; ++i)
#pragma unroll
    for (int j = 0; j < Tile::column_steps; ++j)
#pragma unroll
      for (int r = 0; r < 4; ++r) sum[i][j][r] = 0;

  typename word_way<is_copied<A, Precision>(), A, Precision, Tile::rows, Tile::words>::type mover_a;
  typename word_way<is_copied<B, Precision>(), B, Precision, Tile::columns, Tile::words>::type mover_b;
  mover_a.start(a, batch, first_row, M);
  mover_b.start(b, batch, first_column, N);
  const int steps = int(tiles_of(range.end - range.begin, depth));
  const auto copy = [&](int step) {
    if (step < steps) {
      mover_a.copy(a, range.begin + long(step) * depth, range.end, memory + step % stages * Tile::stage);
      mover_b.copy(b, range.begin + long(step) * depth, range.end, memory + step % stages * Tile::stage + Tile::rows * Tile::stride);
    }
    pg_cp_commit();
  };
  const auto fetch = [&](int step) {
    mover_a.fetch(a, range.begin + long(step) * depth, range.end);
    mover_b.fetch(b, range.begin + long(step) * depth, range.end);
  };
  const auto put = [&](int step) {
    mover_a.put(shared, step % stages * Tile::stage);
    mover_b.put(shared, step % stages * Tile::stage + Tile::rows * Tile::stride);
  };
  for (int step = 0; step < stages - 1; ++step) copy(step);
  if (steps > 0) {
    fetch(0);
    put(0);
  }
  for (int step = 0; step < steps; ++step) {
    pg_cp_wait<stages - 2>();
    __syncthreads();
    if (step + 1 < steps) fetch(step + 1);
    copy(step + stages - 1);
    const u32* const stage = memory + step % stages * Tile::stage;
#pragma unroll
    for (int k = 0; k < Tile::words; k += 8) {
      u32 left[Tile::row_steps][4], right[Tile::column_steps / 2][4];
#pragma unroll
      for (int i = 0; i < Tile::row_steps; ++i) pg_ldmatrix_x4(left[i], stage + a_at + i * 16 * Tile::stride + k);
#pragma unroll
      for (int j = 0; j < Tile::column_steps / 2; ++j) pg_ldmatrix_x4(right[j], stage + b_at + j * 16 * Tile::stride + k);
#pragma unroll
      for (int i = 0; i < Tile::row_steps; ++i)
#pragma unroll
        for (int r = 0; r < 4; ++r) left[i][r] = Precision::operand(left[i][r]);
#pragma unroll
      for (int j = 0; j < Tile::column_steps; ++j) {
        const u32 column[2] = {Precision::operand(right[j / 2][j % 2 * 2]), Precision::operand(right[j / 2][j % 2 * 2 + 1])};
#pragma unroll
        for (int i = 0; i < Tile::row_steps; ++i) Precision::multiply(sum[i][j], left[i], column);
      }
    }
    if (step + 1 < steps) put(step + 1);
  }
  pg_cp_wait<0>();
  __syncthreads();

  const int turned = warp * Tile::turned;
#pragma unroll 1
  for (int group = 0; group < Tile::row_steps; ++group) {
    // Registers need constant indices: each group is written under its own condition, the epilogue is there once.
#pragma unroll
    for (int i = 0; i < Tile::row_steps; ++i)
      if (i == group) {
#pragma unroll
        for (int j = 0; j < Tile::column_steps; ++j)
#pragma unroll
          for (int r = 0; r < 4; r += 2) {
            const u32 pair[2] = {bit_cast<u32>(sum[i][j][r]), bit_cast<u32>(sum[i][j][r + 1])};
            write_shared<2>(shared, turned + (lane / 4 + r * 4) * Tile::turned_stride + j * 8 + lane % 4 * 2, pair);
          }
      }
    __syncwarp();
    const long to_row = first_row + warp_row * (Tile::rows / Tile::warp_rows) + group * 16;
    const long to_column = first_column + warp_column * Tile::turned_columns;
#pragma unroll 4
    for (int i = lane; i < 16 * Tile::turned_columns; i += 32) {
      const int r = i / Tile::turned_columns, c = i % Tile::turned_columns;
      if (to_row + r < M && to_column + c < N) epilogue(to_row + r, to_column + c, bit_cast<f32>(u32(shared[turned + r * Tile::turned_stride + c])));
    }
    __syncwarp();
  }
  __syncthreads();
}

}  // namespace pg

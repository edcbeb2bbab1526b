// Matrix products by tiles: operands come through functors, results leave through an epilogue, element by element.
//
// How: a block owns a tile of the result and walks K in steps of Tile::depth. While it multiplies one step out of shared
// memory, the next one is on its way from global memory to registers; two buffers need one barrier a step. Each thread
// holds Tile::thread_rows x Tile::thread_columns sums. At the end each warp turns its sums through shared memory, so that
// the epilogue sees neighbouring columns on neighbouring threads and its loads and stores are coalesced.
//
// Invariants: every sum runs over k in rising order (chunks of k, where there are several, are combined in rising order);
// elements beyond the edges are neither read nor handed over; shared memory is free for reuse on return.
//
// Which tile (result elements a block; dynamic shared memory, product_shared<T, Tile>, of f32):
//   product_tile_128     128 x 128, 33 KiB   both sides >= 128 and at least some 200 tiles
//   product_tile_128x64  128 x 64,  25 KiB   n <= 64, or too few tiles of 128
//   product_tile_64       64 x 64,  18 KiB   the usual one for layers of a few hundred units
//   product_tile_64x8     64 x 64,  17 KiB of f64: the largest for f64 and i64
//   product_tile_32       32 x 32,  18 KiB   small products
//   product_tile_32x128   32 x 128, 21 KiB   m <= 32, n large: convolutions of few channels
//   product_tile_16x128   16 x 128, 18 KiB   m <= 16
// A kernel of it is __launch_bounds__(PG_BLOCK, 1): without the 1, ptxas may spill a few registers to fit two blocks.
// With fewer tiles than multiprocessors and K >= 512, split K: product_chunks, then product_combine as a body of its own.
#pragma once
#include "scalar.h"

namespace pg {

template <class T, class Tile> struct product_layout;

template <int Rows, int Columns, int Depth, int ThreadRows, int ThreadColumns> struct product_tile {
  enum { rows = Rows, columns = Columns, depth = Depth, thread_rows = ThreadRows, thread_columns = ThreadColumns };
  // A warp is 4 x 8 threads; this many warps lie below and beside each other.
  enum { warp_rows = Rows / (4 * ThreadRows), warp_columns = Columns / (8 * ThreadColumns) };
  static_assert(warp_rows * warp_columns * 32 == PG_BLOCK && warp_rows * 4 * ThreadRows == Rows && warp_columns * 8 * ThreadColumns == Columns,
                "the threads of a block must cover the tile");
  template <class T> struct shared {
    enum { bytes = int(sizeof(value_of<T>)) * product_layout<T, product_tile>::elements };
  };
};
// Bytes of dynamic shared memory that a product asks for, with tiles of this header or of product_tensor.h.
template <class T, class Tile> constexpr int product_shared = Tile::template shared<T>::bytes;

typedef product_tile<128, 128, 16, 8, 8> product_tile_128;
typedef product_tile<128, 64, 16, 8, 4> product_tile_128x64;
typedef product_tile<64, 64, 16, 4, 4> product_tile_64;
typedef product_tile<64, 64, 8, 4, 4> product_tile_64x8;
typedef product_tile<32, 32, 32, 2, 2> product_tile_32;
typedef product_tile<32, 128, 16, 4, 4> product_tile_32x128;
typedef product_tile<16, 128, 16, 2, 4> product_tile_16x128;

__device__ __forceinline__ constexpr int least(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ constexpr int most(int a, int b) { return a > b ? a : b; }
__host__ __device__ __forceinline__ constexpr long tiles_of(long extent, long tile) { return (extent + tile - 1) / tile; }

// ---- elements in vectors ---------------------------------------------------------------------------------------------

// W neighbours of shared memory, aligned to W elements; the simulator counts them as one access.
template <int W, class T, class Shared> __device__ __forceinline__ packed<T, W>* shared_vector(Shared& shared, int at) {
#if !defined(__CUDACC__)
  if (W > 1) {
    T* const first = shared;
    if (pg_sim::running.count_traffic) pg_sim::note_shared(first + at, sizeof(T) * W);
    return reinterpret_cast<packed<T, W>*>(first + at);
  }
#endif
  return reinterpret_cast<packed<T, W>*>(&shared[at]);
}
template <int W, class T, class Shared> __device__ __forceinline__ void read_shared(Shared& shared, int at, T (&to)[W]) {
  const packed<T, W> all = *shared_vector<W, T>(shared, at);
#pragma unroll
  for (int i = 0; i < W; ++i) to[i] = all.element[i];
}
template <int W, class T, class Shared> __device__ __forceinline__ void write_shared(Shared& shared, int at, const T (&from)[W]) {
  packed<T, W> all;
#pragma unroll
  for (int i = 0; i < W; ++i) all.element[i] = from[i];
  *shared_vector<W, T>(shared, at) = all;
}

// sum + a * b; integers wrap.
template <class T> __device__ __forceinline__ T multiply_add(T a, T b, T sum) {
  if constexpr (is_float<T>) return sum + a * b;
  else return T(u64(sum) + u64(a) * u64(b));
}

// ---- operands --------------------------------------------------------------------------------------------------------

// An operand gives lines: a row of A or a column of B, the elements along k. `has_address` says whether they lie in memory
// as they are, so that they may be copied. `along_k` says which way neighbouring
// threads walk: along k, or across lines. `width` elements that way are read as one: then k (or the line) is a multiple of
// width, so is its extent, and the address is aligned to width elements.

// Element (line, k) of matrix `batch` lies at base(batch)[line * line_stride + k * k_stride].
template <class T, bool AlongK, int Width, class Base> struct strided_operand {
  typedef T storage;
  enum { along_k = AlongK, width = Width, has_address = true };
  Base base;
  long line_stride, k_stride;
  struct line {
    const T* start;
    long stride;
  };
  __device__ __forceinline__ line line_of(long batch, long index) const { return {base(batch) + index * line_stride, k_stride}; }
  __device__ __forceinline__ const T* address(const line& from, long k) const { return from.start + k * from.stride; }
  template <int W> __device__ __forceinline__ void read(const line& from, long k, value_of<T> (&to)[W]) const {
    if constexpr (W == 1) to[0] = load(address(from, k));
    else load_packed<W>(address(from, k), to);
  }
};

template <class T, bool AlongK, int Width, class Base>
__device__ __forceinline__ strided_operand<T, AlongK, Width, Base> strided(const Base& base, long line_stride, long k_stride) {
  return {base, line_stride, k_stride};
}

// Any operand: element(batch, line, k) gives it.
template <class T, bool AlongK, class Element> struct element_operand {
  typedef T storage;
  enum { along_k = AlongK, width = 1, has_address = false };
  Element element;
  struct line {
    long batch, index;
  };
  __device__ __forceinline__ line line_of(long batch, long index) const { return {batch, index}; }
  template <int W> __device__ __forceinline__ void read(const line& from, long k, value_of<T> (&to)[W]) const {
    to[0] = element(from.batch, from.index, k);
  }
};
template <class T, bool AlongK, class Element> __device__ __forceinline__ element_operand<T, AlongK, Element> by_element(const Element& element) {
  return {element};
}

// ---- from global to shared memory -------------------------------------------------------------------------------------

// Moves Lines x Depth elements of an operand into shared memory as [k][line], by way of registers.
template <class Operand, int Lines, int Depth> struct tile_mover {
  typedef typename Operand::storage storage;
  typedef value_of<storage> value;
  enum {
    along_k = Operand::along_k,
    width = least(Operand::width, Lines * Depth / PG_BLOCK),
    slots = Lines * Depth / (PG_BLOCK * width),
    lines = along_k ? slots : 1,
    // Four elements more than a multiple of the banks: then a warp's stores along k fall into different banks.
    stride = Lines + 4,
    // Along k a warp takes 32 bytes of each of its lines, whole sectors; across lines a block takes whole rows.
    lanes_k = least(Depth / width, most(1, 32 / int(width * sizeof(storage)))),
    lanes_line = 32 / lanes_k,
    steps_k = Depth / (width * lanes_k),
    vectors = Lines / width
  };
  static_assert(slots >= 1 && slots * PG_BLOCK * width == Lines * Depth, "the threads of a block must cover the step");
  typename Operand::line line[lines];
  bool is_inside[lines];
  value held[slots][width];

  static __device__ __forceinline__ int k_at(int slot) {
    const int thread = threadIdx.x;
    if constexpr (bool(along_k)) return ((thread / 32 + 8 * slot) % steps_k * lanes_k + thread % lanes_k) * width;
    else return thread / vectors + slot * (PG_BLOCK / vectors);
  }
  static __device__ __forceinline__ int line_at(int slot) {
    const int thread = threadIdx.x;
    if constexpr (bool(along_k)) return (thread / 32 + 8 * slot) / steps_k * lanes_line + thread % 32 / lanes_k;
    else return thread % vectors * width;
  }

  __device__ __forceinline__ void start(const Operand& operand, long batch, long first, long extent) {
#pragma unroll
    for (int i = 0; i < lines; ++i) {
      const long index = first + line_at(i);
      is_inside[i] = index < extent;
      line[i] = operand.line_of(batch, is_inside[i] ? index : 0);
    }
  }
  __device__ __forceinline__ void fetch(const Operand& operand, long k, long end) {
#pragma unroll
    for (int s = 0; s < slots; ++s) {
      const long at = k + k_at(s);
      if (is_inside[along_k ? s : 0] && at < end) {
        operand.template read<width>(line[along_k ? s : 0], at, held[s]);
      } else {
#pragma unroll
        for (int i = 0; i < width; ++i) held[s][i] = value(0);
      }
    }
  }
  template <class Shared> __device__ __forceinline__ void put(Shared& shared, int offset) const {
#pragma unroll
    for (int s = 0; s < slots; ++s) {
      const int at = offset + k_at(s) * stride + line_at(s);
      if constexpr (bool(along_k)) {
#pragma unroll
        for (int i = 0; i < width; ++i) shared[at + i * stride] = held[s][i];
      } else {
        write_shared<width>(shared, at, held[s]);
      }
    }
  }
};

// ---- products --------------------------------------------------------------------------------------------------------

// Where the sums of a thread lie in the tile, and how shared memory is parted.
template <class T, class Tile> struct product_layout {
  typedef value_of<T> value;
  enum {
    vector = least(least(Tile::thread_rows, Tile::thread_columns), 16 / int(sizeof(value))),
    row_groups = Tile::thread_rows / vector,
    column_groups = Tile::thread_columns / vector,
    row_stride = Tile::rows + 4,
    column_stride = Tile::columns + 4,
    buffer = Tile::depth * (row_stride + column_stride),
    // A warp's 4 x 8 vectors squared, turned for the epilogue.
    turned_rows = 4 * vector,
    turned_columns = 8 * vector,
    turned_stride = 9 * vector,
    turned = turned_rows * turned_stride,
    elements = most(2 * buffer, PG_BLOCK / 32 * turned)
  };
};

// Result tiles are walked in groups of 8 rows of tiles, so that blocks at work side by side share operands in L2.
struct tile_place {
  long row, column;
};
__device__ __forceinline__ tile_place place_of_tile(long tile, long row_tiles, long column_tiles) {
  const long band = 8 * column_tiles, first = tile / band * 8, rows = row_tiles - first < 8 ? row_tiles - first : 8;
  return {first + tile % band % rows, tile % band / rows};
}

// The part of 0 … K that one of `chunks` sums over: whole steps, chunks beyond the end are empty.
struct k_range {
  long begin, end;
};
__device__ __forceinline__ k_range k_range_of(long K, long chunks, long chunk, long depth) {
  const long length = tiles_of(tiles_of(K, chunks), depth) * depth;
  const long begin = chunk * length < K ? chunk * length : K;
  return {begin, K - begin < length ? K : begin + length};
}

template <class T> struct element_type {};

// Sums of one tile over a range of k, handed over as epilogue(row, column, value).
template <class T, int Rows, int Columns, int Depth, int ThreadRows, int ThreadColumns, class A, class B, class Epilogue>
__device__ __forceinline__ void sum_tile(element_type<T>, product_tile<Rows, Columns, Depth, ThreadRows, ThreadColumns>, long batch, long first_row, long M,
                                         long first_column, long N, k_range range, const A& a, const B& b, Epilogue&& epilogue) {
  typedef product_tile<Rows, Columns, Depth, ThreadRows, ThreadColumns> Tile;
  typedef product_layout<T, Tile> layout;
  typedef value_of<T> value;
  constexpr int V = layout::vector, depth = Tile::depth;
  PG_DYNAMIC_SHARED(value, shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp / Tile::warp_columns, warp_column = warp % Tile::warp_columns;
  const int row = (warp_row * 4 + lane / 8) * V, column = (warp_column * 8 + lane % 8) * V;

  value sum[Tile::thread_rows][Tile::thread_columns];
#pragma unroll
  for (int i = 0; i < Tile::thread_rows; ++i)
#pragma unroll
    for (int j = 0; j < Tile::thread_columns; ++j) sum[i][j] = value(0);

  tile_mover<A, Tile::rows, depth> mover_a;
  tile_mover<B, Tile::columns, depth> mover_b;
  mover_a.start(a, batch, first_row, M);
  mover_b.start(b, batch, first_column, N);
  if (range.begin < range.end) {
    mover_a.fetch(a, range.begin, range.end);
    mover_b.fetch(b, range.begin, range.end);
    mover_a.put(shared, 0);
    mover_b.put(shared, depth * layout::row_stride);
    __syncthreads();
  }
  int buffer = 0;
  for (long k = range.begin; k < range.end; k += depth) {
    const bool has_next = k + depth < range.end;
    if (has_next) {
      mover_a.fetch(a, k + depth, range.end);
      mover_b.fetch(b, k + depth, range.end);
    }
    const int rows_at = buffer + row, columns_at = buffer + depth * layout::row_stride + column;
#pragma unroll
    for (int step = 0; step < depth; ++step) {
      value left[layout::row_groups][V], right[layout::column_groups][V];
#pragma unroll
      for (int g = 0; g < layout::row_groups; ++g)
        read_shared<V>(shared, rows_at + step * layout::row_stride + g * (Tile::rows / layout::row_groups), left[g]);
#pragma unroll
      for (int g = 0; g < layout::column_groups; ++g)
        read_shared<V>(shared, columns_at + step * layout::column_stride + g * (Tile::columns / layout::column_groups), right[g]);
#pragma unroll
      for (int i = 0; i < Tile::thread_rows; ++i)
#pragma unroll
        for (int j = 0; j < Tile::thread_columns; ++j)
          sum[i][j] = multiply_add(left[i / V][i % V], right[j / V][j % V], sum[i][j]);
    }
    buffer = layout::buffer - buffer;
    if (has_next) {
      mover_a.put(shared, buffer);
      mover_b.put(shared, buffer + depth * layout::row_stride);
    }
    __syncthreads();
  }

  const int turned = warp * layout::turned;
#pragma unroll 1
  for (int group = 0; group < layout::row_groups * layout::column_groups; ++group) {
    const int row_group = group / layout::column_groups, column_group = group % layout::column_groups;
    // Registers need constant indices: each group is written under its own condition, the epilogue is there once.
#pragma unroll
    for (int g = 0; g < layout::row_groups * layout::column_groups; ++g)
      if (g == group) {
#pragma unroll
        for (int i = 0; i < V; ++i) {
          value neighbours[V];
#pragma unroll
          for (int j = 0; j < V; ++j) neighbours[j] = sum[g / layout::column_groups * V + i][g % layout::column_groups * V + j];
          write_shared<V>(shared, turned + (lane / 8 * V + i) * layout::turned_stride + lane % 8 * V, neighbours);
        }
      }
    __syncwarp();
    const long to_row = first_row + row_group * (Tile::rows / layout::row_groups) + warp_row * layout::turned_rows;
    const long to_column = first_column + column_group * (Tile::columns / layout::column_groups) + warp_column * layout::turned_columns;
#pragma unroll 4
    for (int i = lane; i < layout::turned_rows * layout::turned_columns; i += 32) {
      const int r = i / layout::turned_columns, c = i % layout::turned_columns;
      if (to_row + r < M && to_column + c < N)
        epilogue(to_row + r, to_column + c, value(shared[turned + r * layout::turned_stride + c]));
    }
    __syncwarp();
  }
  __syncthreads();
}

// sum over k of a(batch, m, k) * b(batch, k, n), handed over as epilogue(batch, row, column, value), once for each element.
// Units: batch * row tiles * column tiles.
template <class T, class Tile, class A, class B, class Epilogue>
__device__ __forceinline__ void product(const part& part, long batch, long M, long N, long K, const A& a, const B& b, Epilogue&& epilogue) {
  const long row_tiles = tiles_of(M, Tile::rows), column_tiles = tiles_of(N, Tile::columns), tiles = row_tiles * column_tiles;
  for (long unit = part.block; unit < batch * tiles; unit += part.blocks) {
    const long matrix = unit / tiles;
    const tile_place at = place_of_tile(unit % tiles, row_tiles, column_tiles);
    sum_tile(element_type<T>(), Tile(), matrix, at.row * Tile::rows, M, at.column * Tile::columns, N, k_range{0, K}, a, b,
                              [&](long row, long column, value_of<T> value) { epilogue(matrix, row, column, value); });
  }
}

// The sums of each of `chunks` parts of K, into partials[chunk][batch][m][n]. Units: chunks * batch * tiles.
template <class T, class Tile, class A, class B>
__device__ __forceinline__ void product_chunks(const part& part, long batch, long M, long N, long K, long chunks, const A& a, const B& b,
                                               value_of<T>* partials) {
  const long row_tiles = tiles_of(M, Tile::rows), column_tiles = tiles_of(N, Tile::columns), tiles = row_tiles * column_tiles;
  for (long unit = part.block; unit < chunks * batch * tiles; unit += part.blocks) {
    const long matrix = unit / tiles % batch, chunk = unit / tiles / batch;
    const tile_place at = place_of_tile(unit % tiles, row_tiles, column_tiles);
    value_of<T>* const to = partials + (chunk * batch + matrix) * M * N;
    sum_tile(element_type<T>(), Tile(), matrix, at.row * Tile::rows, M, at.column * Tile::columns, N, k_range_of(K, chunks, chunk, Tile::depth), a, b,
                              [&](long row, long column, value_of<T> value) { store(to + row * N + column, value); });
  }
}

// Adds the chunks up in rising order, one thread an element, and hands over epilogue(batch, row, column, value).
// Units: batch * m * n / PG_BLOCK.
template <class T, class Epilogue>
__device__ __forceinline__ void product_combine(const part& part, long batch, long M, long N, long chunks, const value_of<T>* partials,
                                                Epilogue&& epilogue) {
  const long elements = batch * M * N;
  for (long i = part.thread(); i < elements; i += part.threads()) {
    value_of<T> sum = load(partials + i);
    for (long chunk = 1; chunk < chunks; ++chunk) sum = value_of<T>(sum + load(partials + chunk * elements + i));
    epilogue(i / (M * N), i / N % M, i % N, sum);
  }
}

}  // namespace pg

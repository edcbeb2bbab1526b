// softmax(scores) v row by row without the scores in memory ("FlashAttention", Dao et al. 2022), and its gradient.
//
// How, forward: a block owns 64 queries and walks the keys 64 (of many features, 32) at a time; while it works on scores, the values are on their way to
// registers, and while it works on values, the next keys. A row's maximum and sum are kept as they grow, what was summed before is rescaled. 16 lanes
// share 4 rows, so that rows need no barrier of the block. Gradient: blocks that own a tile of keys walk the queries for
// the gradients of keys and values, others own queries and walk the keys for theirs: weights are found twice from the rows'
// log-sum-exps, seven products in all, and no sum is shared between blocks.
//
// Invariants: sums have a fixed order; as in softmax, a row of which all scores are -inf, or one is NaN, gives NaN; shared
// memory is free for reuse on return.
#pragma once
#include "product.h"

namespace pg {

enum { attention_rows = 64 };

// Keys of a step: what fits in 99 KiB of shared memory.
template <int Depth> constexpr int attention_keys = Depth > 64 ? 32 : 64;

// Bytes of dynamic shared memory: queries and keys turned, values, and the weights of one step; of f32 68 KiB for Depth 64,
// 86 KiB for 128.
template <class T, int Depth>
constexpr int attention_shared = int(sizeof(value_of<T>)) * (Depth * (attention_rows + 4) + Depth * (attention_keys<Depth> + 4) +
                                                             attention_keys<Depth> * (Depth + 4) + attention_rows * (attention_rows + 4));

// For each of `batch` matrices: out[row] = sum over columns of softmax(score(batch, row, column, q[row] . k[column])) v[column].
//
// q and k are operands of `depth` elements along k, lines are queries and keys; v is one whose lines are its `width` columns,
// and k the keys; neither is more than Depth, a multiple of 16. Columns beyond row + shift have no weight: 0 for causal attention, `keys` for all to see
// all. epilogue(batch, row, column, value) takes the result, and save(batch, row, value) the logarithm of the row's sum of
// exponentials, from which a gradient finds the weights again. Units: batch * ceil(queries / 64).
template <class T, int Depth, class Q, class K, class V, class Score, class Save, class Epilogue>
__device__ __forceinline__ void attention_forward(const part& part, long batch, long queries, long keys, long depth, long width, long shift,
                                                  const Q& q, const K& k, const V& v, Score&& score, Save&& save, Epilogue&& epilogue) {
  typedef value_of<T> value;
  static_assert(Depth % 16 == 0, "16 lanes share the columns of a row");
  constexpr int rows = attention_rows, stride = rows + 4, step = attention_keys<Depth>, key_stride = step + 4, C = step / 16;
  constexpr int W = least(4, Depth / 16), groups = Depth / 16 / W;
  const value lowest = lowest_value<value>();
  PG_DYNAMIC_SHARED(value, shared);
  const int queries_at = 0, keys_at = Depth * stride, values_at = keys_at + Depth * key_stride, weights_at = values_at + step * (Depth + 4);
  const int lane = threadIdx.x % 16, mine = threadIdx.x / 16 * 4;
  const long tiles = tiles_of(queries, rows);
  for (long unit = part.block; unit < batch * tiles; unit += part.blocks) {
    const long matrix = unit / tiles, first = unit % tiles * rows;
    const long last = first + rows < queries ? first + rows : queries, seen = last + shift < keys ? last + shift : keys;
    tile_mover<Q, rows, Depth> mover_q;
    tile_mover<K, step, Depth> mover_k;
    tile_mover<V, Depth, step> mover_v;
    mover_q.start(q, matrix, first, queries);
    mover_q.fetch(q, 0, depth);
    mover_q.put(shared, queries_at);
    mover_v.start(v, matrix, 0, width);
    mover_k.start(k, matrix, 0, keys);
    mover_k.fetch(k, 0, depth);

    value most_seen[4], total[4], sum[4][groups][W];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      most_seen[i] = lowest;
      total[i] = value(0);
#pragma unroll
      for (int j = 0; j < groups * W; ++j) sum[i][j / W][j % W] = value(0);
    }
    for (long key = 0; key < seen; key += step) {
      mover_k.put(shared, keys_at);
      __syncthreads();
      mover_v.fetch(v, key, keys);
      value weight[4][C];
#pragma unroll
      for (int i = 0; i < 4 * C; ++i) weight[i / C][i % C] = value(0);
#pragma unroll 8
      for (int d = 0; d < Depth; ++d) {
        value left[4], right[C];
        read_shared<4>(shared, queries_at + d * stride + mine, left);
        read_shared<C>(shared, keys_at + d * key_stride + lane * C, right);
#pragma unroll
        for (int i = 0; i < 4 * C; ++i) weight[i / C][i % C] = multiply_add(left[i / C], right[i % C], weight[i / C][i % C]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const long row = first + mine + i, end = row + shift < keys ? row + shift + 1 : keys;
        const int columns = row >= queries || end <= key ? 0 : end - key < step ? int(end - key) : step;  // that this row sees here
        value highest = most_seen[i];
#pragma unroll
        for (int j = 0; j < C; ++j) {
          const int column = lane * C + j;
          weight[i][j] = column < columns ? value(score(matrix, row, key + column, weight[i][j])) : lowest;
          highest = maximum(highest, weight[i][j]);
        }
#pragma unroll
        for (int distance = 1; distance < 16; distance *= 2) highest = maximum(highest, value(__shfl_xor_sync(~0u, highest, distance)));
        // While nothing has been seen, -inf minus -inf must not be asked for.
        const value base = highest == lowest ? value(0) : highest, factor = exp(value(most_seen[i] - base));
        most_seen[i] = highest;
        total[i] = value(total[i] * factor);
#pragma unroll
        for (int j = 0; j < groups * W; ++j) sum[i][j / W][j % W] = value(sum[i][j / W][j % W] * factor);
#pragma unroll
        for (int j = 0; j < C; ++j) {
          weight[i][j] = exp(value(weight[i][j] - base));
          total[i] = value(total[i] + weight[i][j]);
        }
        write_shared<C>(shared, weights_at + (mine + i) * stride + lane * C, weight[i]);
      }
      mover_v.put(shared, values_at);
      __syncthreads();
      if (key + step < seen) {
        mover_k.start(k, matrix, key + step, keys);
        mover_k.fetch(k, 0, depth);
      }
#pragma unroll 1
      for (int c = 0; c < step; c += 4) {
        value left[4][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) read_shared<4>(shared, weights_at + (mine + i) * stride + c, left[i]);
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int g = 0; g < groups; ++g) {
            value right[W];
            read_shared<W>(shared, values_at + (c + j) * (Depth + 4) + (g * 16 + lane) * W, right);
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
              for (int r = 0; r < W; ++r) sum[i][g][r] = multiply_add(left[i][j], right[r], sum[i][g][r]);
          }
      }
    }
    __syncwarp();

#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int distance = 1; distance < 16; distance *= 2) total[i] = value(total[i] + __shfl_xor_sync(~0u, total[i], distance));
      if (lane == 0 && first + mine + i < queries) save(matrix, first + mine + i, value(most_seen[i] + log(total[i])));
    }
    // Turned within the row's place among the weights, so that neighbouring lanes hand over neighbouring columns.
#pragma unroll
    for (int g = 0; g < groups; ++g) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        value result[W];
#pragma unroll
        for (int r = 0; r < W; ++r) result[r] = value(sum[i][g][r] / total[i]);
        write_shared<W>(shared, weights_at + (mine + i) * stride + lane * W, result);
      }
      __syncwarp();
      for (int i = 0; i < 4; ++i)
        for (int r = 0; r < W; ++r)
          if (first + mine + i < queries && g * 16 * W + r * 16 + lane < width)
            epilogue(matrix, first + mine + i, long(g * 16 * W + r * 16 + lane), value(shared[weights_at + (mine + i) * stride + r * 16 + lane]));
      __syncwarp();
    }
    __syncthreads();
  }
}

// ---- gradient --------------------------------------------------------------------------------------------------------

enum { attention_walked = 32 };
// Keys or queries that a block owns.
template <int Depth> constexpr int attention_owned = Depth > 64 ? 32 : 64;

// Bytes of dynamic shared memory: four operands turned, and two matrices of scores; of f32 69 KiB for Depth 64, 81 KiB for 128.
template <class T, int Depth>
constexpr int attention_gradient_shared = int(sizeof(value_of<T>)) * (2 * Depth * (attention_owned<Depth> + 4) + 2 * Depth * (attention_walked + 4) +
                                                                      2 * attention_walked * (attention_owned<Depth> + 4));

// Moves lines of an operand, `depth` elements each, to shared memory as [element][line]; zeros beyond either.
template <int Lines, int Depth, class Operand, class Shared>
__device__ __forceinline__ void attention_move(const Operand& operand, long batch, long first, long extent, long depth, Shared& shared, int at) {
  tile_mover<Operand, Lines, Depth> mover;
  mover.start(operand, batch, first, extent);
  mover.fetch(operand, 0, depth);
  mover.put(shared, at);
}

// product[i][j] = the product of queries row + i and keys column + j, out of [element][line].
template <int Rows, int Columns, int Depth, class Value, class Shared>
__device__ __forceinline__ void attention_scores(Shared& shared, int left_at, int left_stride, int right_at, int right_stride, Value (&product)[Rows][Columns]) {
#pragma unroll
  for (int i = 0; i < Rows * Columns; ++i) product[i / Columns][i % Columns] = Value(0);
#pragma unroll 8
  for (int d = 0; d < Depth; ++d) {
    Value left[Rows], right[Columns];
    read_shared<Rows>(shared, left_at + d * left_stride, left);
    read_shared<Columns>(shared, right_at + d * right_stride, right);
#pragma unroll
    for (int i = 0; i < Rows * Columns; ++i) product[i / Columns][i % Columns] = multiply_add(left[i / Columns], right[i % Columns], product[i / Columns][i % Columns]);
  }
}

// The gradients of q, k and v from `sums` (forward's logarithms), the result's gradient g, and `excess`, what each row takes
// from its gradient of weights; both are functions (batch, row). All operands have `depth` or `width` elements along k, lines
// are queries and keys. Weights are exp(scale q k - sum), zero for keys beyond row + shift. Results leave through
// put_q, put_k and put_v(batch, line, element, value). Units: batch * (key tiles + query tiles).
template <class T, int Depth, class Q, class K, class V, class G, class Sums, class Excess, class PutK, class PutV>
__device__ __forceinline__ void attention_gradient_of_keys(const part& part, long batch, long queries, long keys, long depth, long width, long shift,
                                                           value_of<T> scale, const Q& q, const K& k, const V& v, const G& g, Sums&& sums,
                                                           Excess&& excess, PutK&& put_k, PutV&& put_v) {
  typedef value_of<T> value;
  constexpr int owned = attention_owned<Depth>, walked = attention_walked, R = walked / 16, C = owned / 16, D = Depth / 16;
  constexpr int own_stride = owned + 4, walk_stride = walked + 4;
  PG_DYNAMIC_SHARED(value, shared);
  const int k_at = 0, v_at = Depth * own_stride, q_at = 2 * Depth * own_stride, g_at = q_at + Depth * walk_stride;
  const int weights_at = g_at + Depth * walk_stride, scores_at = weights_at + walked * own_stride;
  const int lane = threadIdx.x % 16, group = threadIdx.x / 16;
  const long tiles = tiles_of(keys, owned);
  for (long unit = part.block; unit < batch * tiles; unit += part.blocks) {
    const long matrix = unit / tiles, first = unit % tiles * owned;
    attention_move<owned, Depth>(k, matrix, first, keys, depth, shared, k_at);
    attention_move<owned, Depth>(v, matrix, first, keys, width, shared, v_at);
    value sum_k[C][D], sum_v[C][D];
#pragma unroll
    for (int i = 0; i < C * D; ++i) sum_k[i / D][i % D] = sum_v[i / D][i % D] = value(0);
    // From the first step in which a query sees any of these keys.
    const long start = first > shift ? (first - shift) / walked * walked : 0;
    for (long query = start; query < queries; query += walked) {
      attention_move<walked, Depth>(q, matrix, query, queries, depth, shared, q_at);
      attention_move<walked, Depth>(g, matrix, query, queries, width, shared, g_at);
      __syncthreads();
      value weight[R][C], score[R][C];
      attention_scores<R, C, Depth>(shared, q_at + group * R, walk_stride, k_at + lane * C, own_stride, weight);
      attention_scores<R, C, Depth>(shared, g_at + group * R, walk_stride, v_at + lane * C, own_stride, score);
#pragma unroll
      for (int i = 0; i < R; ++i) {
        const long row = query + group * R + i, end = row + shift < keys ? row + shift + 1 : keys;
        const value sum = row < queries ? sums(matrix, row) : value(0), less = row < queries ? excess(matrix, row) : value(0);
#pragma unroll
        for (int j = 0; j < C; ++j) {
          const bool is_seen = row < queries && first + lane * C + j < end;
          weight[i][j] = is_seen ? exp(value(weight[i][j] * scale - sum)) : value(0);
          score[i][j] = is_seen ? value((score[i][j] - less) * weight[i][j] * scale) : value(0);
        }
        write_shared<C>(shared, weights_at + (group * R + i) * own_stride + lane * C, weight[i]);
        write_shared<C>(shared, scores_at + (group * R + i) * own_stride + lane * C, score[i]);
      }
      __syncthreads();
#pragma unroll 1
      for (int r = 0; r < walked; r += 4) {
        value of_v[4][C], of_k[4][C];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          read_shared<C>(shared, weights_at + (r + i) * own_stride + group * C, of_v[i]);
          read_shared<C>(shared, scores_at + (r + i) * own_stride + group * C, of_k[i]);
        }
#pragma unroll
        for (int d = 0; d < D; ++d) {
          value g_part[4], q_part[4];
          read_shared<4>(shared, g_at + (d * 16 + lane) * walk_stride + r, g_part);
          read_shared<4>(shared, q_at + (d * 16 + lane) * walk_stride + r, q_part);
#pragma unroll
          for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int c = 0; c < C; ++c) {
              sum_v[c][d] = multiply_add(of_v[i][c], g_part[i], sum_v[c][d]);
              sum_k[c][d] = multiply_add(of_k[i][c], q_part[i], sum_k[c][d]);
            }
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int c = 0; c < C; ++c)
#pragma unroll
      for (int d = 0; d < D; ++d) {
        const long key = first + group * C + c, element = d * 16 + lane;
        if (key < keys && element < depth) put_k(matrix, key, element, sum_k[c][d]);
        if (key < keys && element < width) put_v(matrix, key, element, sum_v[c][d]);
      }
    __syncthreads();
  }
}

template <class T, int Depth, class Q, class K, class V, class G, class Sums, class Excess, class PutQ>
__device__ __forceinline__ void attention_gradient_of_queries(const part& part, long batch, long queries, long keys, long depth, long width, long shift,
                                                              value_of<T> scale, const Q& q, const K& k, const V& v, const G& g, Sums&& sums,
                                                              Excess&& excess, PutQ&& put_q) {
  typedef value_of<T> value;
  constexpr int owned = attention_owned<Depth>, walked = attention_walked, R = owned / 16, C = walked / 16, D = Depth / 16;
  constexpr int own_stride = owned + 4, walk_stride = walked + 4;
  PG_DYNAMIC_SHARED(value, shared);
  const int q_at = 0, g_at = Depth * own_stride, k_at = 2 * Depth * own_stride, v_at = k_at + Depth * walk_stride;
  const int scores_at = v_at + Depth * walk_stride;
  const int lane = threadIdx.x % 16, mine = threadIdx.x / 16 * R;
  const long tiles = tiles_of(queries, owned);
  for (long unit = part.block; unit < batch * tiles; unit += part.blocks) {
    const long matrix = unit / tiles, first = unit % tiles * owned;
    const long last = first + owned < queries ? first + owned : queries, seen = last + shift < keys ? last + shift : keys;
    attention_move<owned, Depth>(q, matrix, first, queries, depth, shared, q_at);
    attention_move<owned, Depth>(g, matrix, first, queries, width, shared, g_at);
    value sum_q[R][D], sum[R], less[R];
#pragma unroll
    for (int i = 0; i < R; ++i) {
      const long row = first + mine + i;
      sum[i] = row < queries ? sums(matrix, row) : value(0);
      less[i] = row < queries ? excess(matrix, row) : value(0);
#pragma unroll
      for (int d = 0; d < D; ++d) sum_q[i][d] = value(0);
    }
    for (long key = 0; key < seen; key += walked) {
      attention_move<walked, Depth>(k, matrix, key, keys, depth, shared, k_at);
      attention_move<walked, Depth>(v, matrix, key, keys, width, shared, v_at);
      __syncthreads();
      value weight[R][C], score[R][C];
      attention_scores<R, C, Depth>(shared, q_at + mine, own_stride, k_at + lane * C, walk_stride, weight);
      attention_scores<R, C, Depth>(shared, g_at + mine, own_stride, v_at + lane * C, walk_stride, score);
#pragma unroll
      for (int i = 0; i < R; ++i) {
        const long row = first + mine + i, end = row + shift < keys ? row + shift + 1 : keys;
#pragma unroll
        for (int j = 0; j < C; ++j) {
          const value e = exp(value(weight[i][j] * scale - sum[i]));
          score[i][j] = row < queries && key + lane * C + j < end ? value((score[i][j] - less[i]) * e * scale) : value(0);
        }
        write_shared<C>(shared, scores_at + (mine + i) * walk_stride + lane * C, score[i]);
      }
      // A row's scores are written and read by the same 16 lanes.
      __syncwarp();
#pragma unroll 1
      for (int c = 0; c < walked; c += 4) {
        value left[R][4];
#pragma unroll
        for (int i = 0; i < R; ++i) read_shared<4>(shared, scores_at + (mine + i) * walk_stride + c, left[i]);
#pragma unroll
        for (int d = 0; d < D; ++d) {
          value right[4];
          read_shared<4>(shared, k_at + (d * 16 + lane) * walk_stride + c, right);
#pragma unroll
          for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int i = 0; i < R; ++i) sum_q[i][d] = multiply_add(left[i][j], right[j], sum_q[i][d]);
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
      for (int d = 0; d < D; ++d)
        if (first + mine + i < queries && d * 16 + lane < depth) put_q(matrix, first + mine + i, long(d * 16 + lane), sum_q[i][d]);
    __syncthreads();
  }
}

template <class T, int Depth, class Q, class K, class V, class G, class Sums, class Excess, class PutQ, class PutK, class PutV>
__device__ __forceinline__ void attention_gradient(const part& part, long batch, long queries, long keys, long depth, long width, long shift,
                                                   value_of<T> scale, const Q& q, const K& k, const V& v, const G& g, Sums&& sums, Excess&& excess,
                                                   PutQ&& put_q, PutK&& put_k, PutV&& put_v) {
  attention_gradient_of_keys<T, Depth>(part, batch, queries, keys, depth, width, shift, scale, q, k, v, g, sums, excess, put_k, put_v);
  const int units = int(batch * tiles_of(keys, attention_owned<Depth>) % part.blocks);
  attention_gradient_of_queries<T, Depth>(part.after(units), batch, queries, keys, depth, width, shift, scale, q, k, v, g, sums, excess, put_q);
}

}  // namespace pg

// softmax(scores) v row by row without the scores in memory ("FlashAttention", Dao et al. 2022): forward.
//
// How: a block owns 64 queries and walks the keys 64 at a time; while it works on scores, the values are on their way to
// registers, and while it works on values, the next keys. A row's maximum and sum are kept as they grow, what was summed before is rescaled. 16 lanes
// share 4 rows, so that rows need no barrier of the block.
//
// Invariants: sums have a fixed order; as in softmax, a row of which all scores are -inf, or one is NaN, gives NaN; shared
// memory is free for reuse on return.
#pragma once
#include "product.h"

namespace pg {

enum { attention_rows = 64 };

// Bytes of dynamic shared memory: queries and keys turned, values, and the weights of one step; 70 KiB for f32 and Depth 64.
template <class T, int Depth>
constexpr int attention_shared = int(sizeof(value_of<T>)) * (2 * Depth * (attention_rows + 4) + attention_rows * (Depth + 4) + attention_rows * (attention_rows + 4));

// For each of `batch` matrices: out[row] = sum over columns of softmax(score(batch, row, column, q[row] . k[column])) v[column].
//
// q and k are operands of `Depth` (a multiple of 16) elements along k, lines are queries and keys; v is one whose lines are
// its Depth columns, and k the keys. Columns beyond row + shift have no weight: 0 for causal attention, `keys` for all to see
// all. epilogue(batch, row, column, value) takes the result, and save(batch, row, value) the logarithm of the row's sum of
// exponentials, from which a gradient finds the weights again. Units: batch * ceil(queries / 64).
template <class T, int Depth, class Q, class K, class V, class Score, class Save, class Epilogue>
__device__ __forceinline__ void attention_forward(const part& part, long batch, long queries, long keys, long shift, const Q& q, const K& k,
                                                  const V& v, Score&& score, Save&& save, Epilogue&& epilogue) {
  typedef value_of<T> value;
  static_assert(Depth % 16 == 0, "16 lanes share the columns of a row");
  constexpr int rows = attention_rows, stride = rows + 4, turned = Depth * stride;
  constexpr int W = least(4, Depth / 16), groups = Depth / 16 / W;
  const value lowest = lowest_value<value>();
  PG_DYNAMIC_SHARED(value, shared);
  const int queries_at = 0, keys_at = turned, values_at = 2 * turned, weights_at = values_at + rows * (Depth + 4);
  const int lane = threadIdx.x % 16, mine = threadIdx.x / 16 * 4;
  const long tiles = tiles_of(queries, rows);
  for (long unit = part.block; unit < batch * tiles; unit += part.blocks) {
    const long matrix = unit / tiles, first = unit % tiles * rows;
    const long last = first + rows < queries ? first + rows : queries, seen = last + shift < keys ? last + shift : keys;
    tile_mover<Q, rows, Depth> mover_q;
    tile_mover<K, rows, Depth> mover_k;
    tile_mover<V, Depth, rows> mover_v;
    mover_q.start(q, matrix, first, queries);
    mover_q.fetch(q, 0, Depth);
    mover_q.put(shared, queries_at);
    mover_v.start(v, matrix, 0, Depth);
    mover_k.start(k, matrix, 0, keys);
    mover_k.fetch(k, 0, Depth);

    value most_seen[4], total[4], sum[4][groups][W];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      most_seen[i] = lowest;
      total[i] = value(0);
#pragma unroll
      for (int j = 0; j < groups * W; ++j) sum[i][j / W][j % W] = value(0);
    }
    for (long key = 0; key < seen; key += rows) {
      mover_k.put(shared, keys_at);
      __syncthreads();
      mover_v.fetch(v, key, keys);
      value weight[4][4];
#pragma unroll
      for (int i = 0; i < 16; ++i) weight[i / 4][i % 4] = value(0);
#pragma unroll 8
      for (int d = 0; d < Depth; ++d) {
        value left[4], right[4];
        read_shared<4>(shared, queries_at + d * stride + mine, left);
        read_shared<4>(shared, keys_at + d * stride + lane * 4, right);
#pragma unroll
        for (int i = 0; i < 16; ++i) weight[i / 4][i % 4] = multiply_add(left[i / 4], right[i % 4], weight[i / 4][i % 4]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const long row = first + mine + i, end = row + shift < keys ? row + shift + 1 : keys;
        const int columns = row >= queries || end <= key ? 0 : end - key < rows ? int(end - key) : rows;  // that this row sees here
        value highest = most_seen[i];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int column = lane * 4 + j;
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
        for (int j = 0; j < 4; ++j) {
          weight[i][j] = exp(value(weight[i][j] - base));
          total[i] = value(total[i] + weight[i][j]);
        }
        write_shared<4>(shared, weights_at + (mine + i) * stride + lane * 4, weight[i]);
      }
      mover_v.put(shared, values_at);
      __syncthreads();
      if (key + rows < seen) {
        mover_k.start(k, matrix, key + rows, keys);
        mover_k.fetch(k, 0, Depth);
      }
#pragma unroll 1
      for (int c = 0; c < rows; c += 4) {
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
          if (first + mine + i < queries)
            epilogue(matrix, first + mine + i, long(g * 16 * W + r * 16 + lane), value(shared[weights_at + (mine + i) * stride + r * 16 + lane]));
      __syncwarp();
    }
    __syncthreads();
  }
}

}  // namespace pg

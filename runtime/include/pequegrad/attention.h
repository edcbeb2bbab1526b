// softmax(scale q kT) v for one matrix, and its gradient, block by block: no matrix of scores ("FlashAttention", Dao et al.
// 2022).
//
// How: 64 queries meet 64 keys at a time. Keys are turned once for a block, so that the products are gemm.h's micro-kernel on
// tiles of a few rows; a tile of scores is still in L1 when its exponentials are taken and multiplied by the values. The
// gradient finds weights again from the rows' log-sum-exps, five products for each pair of blocks.
// Causal: a tile computes no more columns than its last row sees, 44 % fewer of 64 x 64.
//
// Invariants: sums have a fixed order; nothing outside the operands' own elements is read; as in softmax a row gives NaN of
// which a score is NaN or +inf, or all are -inf. Weights of unseen keys are zero, but within a tile still multiplied.
#pragma once
#include "gemm.h"
#include "reduce.h"

namespace pg {

// L queries of E features, S keys, values of F features.
struct attention_shape {
  long L, S, E, F;
  bool is_causal;
};

// Element (row, feature) lies at data[row * row_stride + feature * feature_stride].
template <class T> struct attention_operand {
  const T* data;
  long row_stride, feature_stride;
  PG_INLINE const T* at(long row) const { return data + row * row_stride; }
};

enum { attention_block = 64 };

PG_INLINE long whole_vectors(long count) { return (count + PG_LANES - 1) / PG_LANES * PG_LANES; }
PG_INLINE long least_of(long a, long b) { return a < b ? a : b; }

// to[r][c] (+)= sum over k of a[r * a_row + k * a_k] * b[k * b_row + c], c < columns, a multiple of the lanes.
template <class T>
PG_NOINLINE void attention_product(long rows, long columns, long K, const T* a, long a_row, long a_k, const T* b, long b_row, T* to, long to_row,
                                   bool accumulate) {
  typedef gemm_tile<T> tile;
  const long vectors = columns / PG_LANES, panels = (vectors + tile::vectors - 1) / tile::vectors, tiles = (rows + tile::rows - 1) / tile::rows;
  for (long p = 0; p < panels; ++p) {
    const long first = even_cut(vectors, panels, p), count = even_cut(vectors, panels, p + 1) - first, column = first * PG_LANES;
    for (long t = 0; t < tiles; ++t) {
      const long row = even_cut(rows, tiles, t), tile_rows = even_cut(rows, tiles, t + 1) - row;
      gemm_kernel_for<T, false>(int(tile_rows), int(count))(K, a + row * a_row, a_row, a_k, b + column, b_row, nullptr, to + row * to_row + column,
                                                            to_row, accumulate);
    }
  }
}

// Rows of an operand as whole vectors: as they lie, where that is what they are, else copied to `room`, zeros behind them.
template <class T> struct attention_rows {
  const T* data;
  long stride;
  PG_INLINE attention_rows(const attention_operand<T>& from, long first, long rows, long features, T* room)
      : data(from.at(first)), stride(from.row_stride) {
    if (from.feature_stride == 1 && features % PG_LANES == 0) return;
    stride = whole_vectors(features);
    gemm_pack(room, stride, data, from.row_stride, from.feature_stride, rows, features);
    data = room;
  }
};

// turned[feature][row], zeros behind the rows up to whole vectors.
template <class T> PG_INLINE void attention_turn(T* turned, const attention_operand<T>& from, long first, long rows, long features) {
  gemm_pack(turned, whole_vectors(rows), from.at(first), from.feature_stride, from.row_stride, features, rows);
}

// How many of `count` keys from `key` on a query sees.
PG_INLINE long attention_seen(const attention_shape& s, long query, long key, long count) {
  const long end = query + 1 - key;
  return !s.is_causal || end >= count ? count : end > 0 ? end : 0;
}

template <class T> PG_INLINE void attention_zero(T* row, long from, long to) {
  for (long c = from; c < to; c += PG_LANES) store_plain(row + c, vec<T>{});
}

template <class T> PG_INLINE T attention_exp(T x) { return T(exp(splat<T>(x)).lane(0)); }

// ---- forward ---------------------------------------------------------------------------------------------------------

PG_INLINE long attention_units(const attention_shape& s) { return (s.L + attention_block - 1) / attention_block; }

// Bytes of scratch, aligned to 64 bytes, for one unit: 64 queries.
template <class T> inline long attention_scratch(const attention_shape& s) {
  const long B = attention_block, F = whole_vectors(s.F);
  return long(sizeof(T)) * (s.E * B + B * F + gemm_tile<T>::rows * B + B * F + 2 * B);
}

template <class T>
PG_NOINLINE void attention_forward(const attention_shape& s, T scale, attention_operand<T> q, attention_operand<T> k, attention_operand<T> v, T* out,
                                   long out_row, T* sums, long sums_row, long unit, T* scratch) {
  const long B = attention_block, F = whole_vectors(s.F), first = unit * B, rows = least_of(s.L - first, B);
  T* const turned = scratch;
  T* const room = turned + s.E * B;
  T* const scores = room + B * F;
  T* const total = scores + gemm_tile<T>::rows * B;
  T* const highest = total + B * F;
  T* const weight = highest + B;
  const long keys_seen = s.is_causal ? least_of(first + rows, s.S) : s.S, tiles = (rows + gemm_tile<T>::rows - 1) / gemm_tile<T>::rows;
  for (long r = 0; r < rows; ++r) {
    highest[r] = lowest_value<T>();
    weight[r] = T(0);
  }
  for (long key = 0; key < keys_seen; key += B) {
    const long keys = least_of(keys_seen - key, B);
    attention_turn(turned, k, key, keys, s.E);
    const attention_rows<T> values(v, key, keys, s.F, room);
    for (long t = 0; t < tiles; ++t) {
      const long begin = even_cut(rows, tiles, t), end = even_cut(rows, tiles, t + 1), columns = attention_seen(s, first + end - 1, key, keys);
      if (!columns) continue;
      const long width = whole_vectors(columns);
      attention_product(end - begin, width, s.E, q.at(first + begin), q.row_stride, q.feature_stride, static_cast<const T*>(turned),
                        whole_vectors(keys), scores, B, false);
      for (long r = begin; r < end; ++r) {
        T* const row = scores + (r - begin) * B;
        const long seen = attention_seen(s, first + r, key, keys);
        vec<T> most = splat<T>(highest[r]);
        for (long c = 0; c < seen; c += PG_LANES) {
          const vec<T> score = load_plain(static_cast<const T*>(row + c)) * scale;
          most = maximum(most, seen - c < PG_LANES ? select(lane_mask(seen - c), score, lowest_value<T>()) : score);
        }
        const T now = reduce_max(most), base = now == lowest_value<T>() ? T(0) : now;
        vec<T> sum{};
        for (long c = 0; c < seen; c += PG_LANES) {
          vec<T> e = exp(load_plain(static_cast<const T*>(row + c)) * scale - base);
          if (seen - c < PG_LANES) e = select(lane_mask(seen - c), e, T(0));
          store_plain(row + c, e);
          sum = sum + e;
        }
        attention_zero(row, whole_vectors(seen), width);
        if (key) {
          const T factor = attention_exp(T(highest[r] - base));
          weight[r] *= factor;
          for (long f = 0; f < F; f += PG_LANES) store_plain(total + r * F + f, load_plain(static_cast<const T*>(total + r * F + f)) * factor);
        }
        highest[r] = now;
        weight[r] += reduce_add(sum);
      }
      attention_product(end - begin, F, columns, static_cast<const T*>(scores), B, 1, values.data, values.stride, total + begin * F, F, key > 0);
    }
  }
  for (long r = 0; r < rows; ++r) {
    const T inverse = T(1) / weight[r];
    for (long f = 0; f < s.F; f += PG_LANES)
      store_plain(out + (first + r) * out_row + f, load_plain(static_cast<const T*>(total + r * F + f)) * inverse, s.F - f);
    sums[(first + r) * sums_row] = highest[r] + log(weight[r]);
  }
}

// ---- gradient --------------------------------------------------------------------------------------------------------

// Bytes of scratch, aligned to 64 bytes, for the gradient of a whole matrix.
template <class T> inline long attention_gradient_scratch(const attention_shape& s) {
  const long B = attention_block, E = whole_vectors(s.E), F = whole_vectors(s.F);
  return long(sizeof(T)) * (B * (s.E + s.F) + B * (2 * E + F) + 2 * B * B + B * (E + F) + s.L * E);
}

template <class T> struct attention_gradient_operands {
  attention_operand<T> q, k, v;
  const T* sums;
  long sums_row;
  attention_operand<T> g;
  const T* excess;
  long excess_row;
};

template <class T>
PG_INLINE void attention_store(T* out, long out_row, const T* from, long rows, long features) {
  for (long r = 0; r < rows; ++r)
    for (long f = 0; f < features; f += PG_LANES)
      store_plain(out + r * out_row + f, load_plain(from + r * whole_vectors(features) + f), features - f);
}

template <class T>
PG_NOINLINE void attention_gradient(const attention_shape& s, T scale, const attention_gradient_operands<T>& x, T* q_out, long q_row, T* k_out,
                                    long k_row, T* v_out, long v_row, T* scratch) {
  const long B = attention_block, E = whole_vectors(s.E), F = whole_vectors(s.F);
  T* const turned_k = scratch;
  T* const turned_v = turned_k + B * s.E;
  T* const key_room = turned_v + B * s.F;
  T* const query_room = key_room + B * E;
  T* const g_room = query_room + B * E;
  T* const weights = g_room + B * F;
  T* const g_scores = weights + B * B;
  T* const total_k = g_scores + B * B;
  T* const total_v = total_k + B * E;
  T* const total_q = total_v + B * F;
  for (long key = 0; key < s.S; key += B) {
    const long keys = least_of(s.S - key, B), width = whole_vectors(keys), key_tiles = (keys + gemm_tile<T>::rows - 1) / gemm_tile<T>::rows;
    // From the first query that sees any of these keys.
    const long start = s.is_causal ? key : 0;
    if (start >= s.L) {
      attention_zero(total_k, 0, keys * E);
      attention_zero(total_v, 0, keys * F);
    } else {
      attention_turn(turned_k, x.k, key, keys, s.E);
      attention_turn(turned_v, x.v, key, keys, s.F);
    }
    const attention_rows<T> key_rows(x.k, key, start < s.L ? keys : 0, s.E, key_room);
    for (long first = start; first < s.L; first += B) {
      const long rows = least_of(s.L - first, B), tiles = (rows + gemm_tile<T>::rows - 1) / gemm_tile<T>::rows;
      const attention_rows<T> query_rows(x.q, first, rows, s.E, query_room), g_rows(x.g, first, rows, s.F, g_room);
      for (long t = 0; t < tiles; ++t) {
        const long begin = even_cut(rows, tiles, t), end = even_cut(rows, tiles, t + 1), columns = attention_seen(s, first + end - 1, key, keys);
        const long used = whole_vectors(columns);
        attention_product(end - begin, used, s.E, x.q.at(first + begin), x.q.row_stride, x.q.feature_stride, static_cast<const T*>(turned_k), width,
                          weights + begin * B, B, false);
        attention_product(end - begin, used, s.F, x.g.at(first + begin), x.g.row_stride, x.g.feature_stride, static_cast<const T*>(turned_v), width,
                          g_scores + begin * B, B, false);
        for (long r = begin; r < end; ++r) {
          T *const row = weights + r * B, *const g_row = g_scores + r * B;
          const long seen = attention_seen(s, first + r, key, keys);
          const T sum = x.sums[(first + r) * x.sums_row], excess = x.excess[(first + r) * x.excess_row];
          for (long c = 0; c < seen; c += PG_LANES) {
            vec<T> e = exp(load_plain(static_cast<const T*>(row + c)) * scale - sum);
            vec<T> g = (load_plain(static_cast<const T*>(g_row + c)) - excess) * e * scale;
            if (seen - c < PG_LANES) {
              e = select(lane_mask(seen - c), e, T(0));
              g = select(lane_mask(seen - c), g, T(0));
            }
            store_plain(row + c, e);
            store_plain(g_row + c, g);
          }
          attention_zero(row, whole_vectors(seen), width);
          attention_zero(g_row, whole_vectors(seen), width);
        }
        attention_product(end - begin, E, columns, static_cast<const T*>(g_scores + begin * B), B, 1, key_rows.data, key_rows.stride,
                          total_q + (first + begin) * E, E, key > 0);
      }
      for (long t = 0; t < key_tiles; ++t) {
        const long begin = even_cut(keys, key_tiles, t), end = even_cut(keys, key_tiles, t + 1);
        const long unseen = s.is_causal ? key + begin - first : 0, from = unseen > 0 ? least_of(unseen, rows) : 0;
        attention_product(end - begin, F, rows - from, static_cast<const T*>(weights + from * B + begin), 1, B, g_rows.data + from * g_rows.stride,
                          g_rows.stride, total_v + begin * F, F, first > start);
        attention_product(end - begin, E, rows - from, static_cast<const T*>(g_scores + from * B + begin), 1, B,
                          query_rows.data + from * query_rows.stride, query_rows.stride, total_k + begin * E, E, first > start);
      }
    }
    attention_store(k_out + key * k_row, k_row, static_cast<const T*>(total_k), keys, s.E);
    attention_store(v_out + key * v_row, v_row, static_cast<const T*>(total_v), keys, s.F);
  }
  attention_store(q_out, q_row, static_cast<const T*>(total_q), s.L, s.E);
}

// ---- compiled once (see gemm.h) --------------------------------------------------------------------------------------

#define PG_ATTENTION_PARTS(PART)                                                                                            \
  PART void attention_product<float>(long, long, long, const float*, long, long, const float*, long, float*, long, bool);
#if defined(PG_PARTS_APART)
PG_ATTENTION_PARTS(extern template)
#endif

}  // namespace pg

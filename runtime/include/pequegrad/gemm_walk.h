// How a worker goes through its part of a matrix product: in blocks that stay in caches, tile by tile, and then through what others
// have not come to yet.
//
// Invariant: the sums of a tile are the same whoever computes them, and of however many blocks.
#pragma once
#include "gemm_cut.h"
#include "gemm_runs.h"
#include "queue.h"

extern "C" int sched_yield() noexcept;

namespace pg {

// A matrix as large as C that an epilogue writes, or that it reads beside such: element (m, n) lies `size` bytes long at
// start + m * row + n * size.
struct gemm_update {
  const void* start;
  long row, size;
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

// A packing that is spread over micro-kernels: slices of `step` k, at most one before each of so many `calls`.
struct gemm_slices {
  long step, count, calls, credit;

  PG_INLINE void set(long panels, long k_count, long least_step, long to_calls) {
    calls = to_calls;
    const long most = panels * ((k_count + least_step - 1) / least_step);
    step = most > calls && calls > 0 ? least_step * ((most + calls - 1) / calls) : least_step;
    count = panels * ((k_count + step - 1) / step);
    credit = 0;
  }
  PG_INLINE bool is_due() {
    credit += count;
    if (credit < calls) return false;
    credit -= calls;
    return true;
  }
};

// The walk over one worker's rectangle: blocks of C, in each block tiles of rows, and of a tile its panels, as wide as a micro-kernel.
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
  bool whole_tiles = false;  // of as many rows as a tile can have, but for the last, instead of equal ones
  long vectors, panels;  // of the rectangle
  long part;                     // of B, which is packed: some k of a block of columns; counted on over blocks of rows
  long k_begin, k_count;         // of the part
  long first_row, block_rows, tiles, first_panel, block_panels, col, columns, stride, columns_before;  // of the block
  long tile_first, tile_next, tile_end;          // The tiles that next() goes through before it enters a block or takes more.
  // Of each of these tiles, the panels that are packed; the others follow when all tiles have passed by.
  long panel_begin, panel_end;
  long row, rows, panel_next;                    // of the tile, the row within the block
  gemm_kernel_function<T> kernels[tile_size::vectors + 1];  // of these rows, by the vectors of a panel
  long kernel_rows;
  const T* tile_a;                               // its rows of A
  long tile_a_row, tile_a_col;
  int owner;                                     // of these tiles, in the team
  T* owners_sums;                                // where they wait
  long taken, claimed, claimed_position;         // of its own tiles; of these, those not yet begun
  long joined;                                   // N where rows of sums may follow each other, or 0
  T* result;                                     // C, where nothing else becomes of its sums and k is not cut, or null
  long result_row;
  // What next() has come to: a part of C whose sums are complete.
  struct complete_sums {
    long row, rows, col, columns, stride;
    const T* sums;
  } done;
  struct panel_place {
    const T* b;
    long b_k, vectors, first;  // its first column, from the block's
  };
  typedef panel_place block_places[gemm_cut<T>::most_columns / PG_LANES];
  block_places places[2];  // of the part of B that is multiplied, and of the next
  panel_place* place;
  // Of operands that do not stay in L2, what is read next comes while what was read before is multiplied: micro-kernels ask for the
  // lines of a slice, which is packed before the next. Asked for long before, lines of a power of two apart drive each other out:
  // A [4096, 1024] transposed and 256 columns took 10 % longer.
  bool is_far;
  // The part of B that is being packed: `packed` k of a panel, and all panels before. It is multiplied next, or `is_current`.
  struct next_part {
    long number, k, k_count, first_panel, column, panels, panel, packed;
    bool is_current;
    panel_place* places;
    T* to;  // of the panel
    gemm_slices slices;
  } coming;
  // Whether panels of a B that lies transposed are turned by the micro-kernels of the panel before, while so many tiles pass by, enough for a
  // vector every four k of theirs. Turned all at once, B [784, 128] took 8 % of the time of 200 rows. Products of 128 k, or with updated or
  // far operands, whose lines are asked for at the same time, take up to 5 % longer so.
  bool turns;
  enum { turning_tiles = 12, least_turning_tiles = 6 };
  bool has_errands;  // Whether micro-kernels ask for lines or pack. Derived for each panel, 1024 x 128 x 128 took 2 % longer.
  // The tiles whose rows are packed together, where A lies transposed, and those that are packed next: `packed` k of them.
  struct packed_rows {
    long begin, end, first_row, k, packed;
    T* to;
    gemm_slices slices;
  } group, coming_rows;
  // Of updated matrices that do not stay in L3, lines come to L2 only: to L1 they are too long on their way, and hold up others.
  // Measured with 32 MiB of L3: those of 12 MiB and more take 2 to 4 % longer when they are asked for to be written, of 4 MiB
  // 0.5 % less. Not so where L1 has 48 KiB: 16 MiB each of three, rows of 4 KiB, take 4 % less that way, rows of 16 KiB as long.
  bool is_vast;
  gemm_run runs[most_updates + 2];  // of updated matrices, of A and of B

  PG_NOINLINE gemm_walk(long M, long K, const T* A, long a_row, long a_col, const T* B, long b_row, long b_col, T* scratch, long row_begin,
                        long row_end, long col_begin, long col_end, const gemm_update* updates, int update_count, bool keeps_sums,
                        gemm_team team)
      : A(A), B(B), M(M), K(K), a_row(a_row), a_col(a_col), b_row(b_row), b_col(b_col), row_begin(row_begin), row_end(row_end),
        col_begin(col_begin), col_end(col_end), scratch(scratch), updates(updates),
        update_count(update_count < most_updates ? update_count : int(most_updates)), team(team),
        cut(row_end - row_begin, K, col_end - col_begin, is_transposed(), b_row, b_col), keeps_sums(keeps_sums || cut.k_blocks > 1), part(-1),
        block_panels(0), columns_before(0), tile_next(0), tile_end(0), panel_begin(0), panel_end(0), panel_next(0), kernel_rows(0), owner(team.index),
        owners_sums(kept()), taken(0), claimed(0), joined(0), result(nullptr), result_row(0), place(places[0]), coming(), group(),
        coming_rows(), runs() {
    vectors = (col_end - col_begin + PG_LANES - 1) / PG_LANES;
    panels = (vectors + tile_size::vectors - 1) / tile_size::vectors;
    // Only where k is cut do the sums of rows wait; others can finish them where they are all of a worker's.
    if (is_cut() && (team.rows + team.size - 1) / team.size > gemm_cut<T>::most_rows) this->team.size = 1;
    is_far = K * (row_end - row_begin + col_end - col_begin) * long(sizeof(T)) > PG_L2_KIB * 1024L;
    // Not columns that fall into the same sets of L1, of which a line is read again for each pair of k.
    turns = transposes_pairs<T> && b_row == 1 && b_col != 1 && b_col * long(sizeof(T)) % 4096 != 0 && K >= 256 && !is_far &&
            this->update_count == 0 && !this->keeps_sums && !is_transposed() && !copies_rows();
    has_errands = is_far || this->update_count > 0;
    is_vast = PG_L1_KIB < 48 && update_count * (row_end - row_begin) * (col_end - col_begin) * long(sizeof(T)) > 2 * PG_L2_KIB * 1024L;
  }

  // Whether the sums of a whole row of N can follow those of the row before at once. Then they do: what a kernel stores behind the
  // last column, the next row replaces, or the panel of its first columns, which is summed later.
  PG_INLINE bool joins_rows() const { return columns == joined && !is_cut(); }

  // Where sums wait: of the block's rows, from block to block of those at once, or of the tile's.
  PG_INLINE T* kept() const { return packed_groups() + 2 * cut.packed_group(); }
  PG_INLINE T* packed_groups() const { return scratch + 2 * cut.packed_b(); }
  PG_INLINE long parts() const { return cut.k_blocks * cut.column_blocks; }  // of each block of rows
  PG_INLINE long all_parts() const { return cut.row_blocks * parts(); }
  PG_INLINE bool is_cut() const { return cut.k_blocks > 1; }
  PG_INLINE bool is_last_k() const { return k_begin + k_count == K; }
  PG_INLINE bool is_transposed() const { return gemm_is_transposed(a_row, a_col); }
  // Rows of A that lie transposed are read where they lie for fewer panels. Elements of one whole half pages apart fall into so few
  // sets that even L2 loses them from panel to panel: A [512, 1024] and 128 columns took 1.25 times as long.
  PG_INLINE bool packs_rows() const { return is_transposed() && block_panels >= (a_col * long(sizeof(T)) % 2048 == 0 ? 2 : 4); }
  // Rows whose elements are dense, but which fall into the same sets of L1.
  PG_INLINE bool copies_rows() const { return gemm_copies_rows && a_col == 1 && a_row * long(sizeof(T)) % 4096 == 0; }
  PG_INLINE long panel_of_block(long across) const { return even_cut(panels, cut.column_blocks, across); }
  PG_INLINE long panel_col(long p) const { return even_cut(vectors, panels, p) * PG_LANES; }
  PG_INLINE long tile_row(long t) const {
    if (!whole_tiles) return even_cut(block_rows, tiles, t);
    return t < tiles ? t * tile_size::rows : block_rows;
  }

  // Goes on to the next panel whose sums are complete, or whole rows where they are joined; false when there is none left.
  PG_NOINLINE bool next() {
    while (panel_next == panel_end) {
      if (tile_next == tile_end && !next_panels()) {
        if (team.size > 1) {
          if (!take()) return false;
        } else {
          if (part + 1 == all_parts()) return false;
          enter_block();
        }
      }
      enter_tile(tile_next++);
      if (!is_last_k() || joins_rows()) sum_panels();
      if (is_last_k() && joins_rows()) {
        done = {first_row + row, rows, col, columns, stride, tile_sums()};
        return true;
      }
    }
    const long p = panel_next++, width = place[p].vectors * PG_LANES, left = columns - place[p].first;
    done = {first_row + row, rows, col + place[p].first, left < width ? left : width, sums_stride(), panel_sums(p)};
    sum_panel(p);
    return true;
  }

  // Goes on to the panel that has been packed while the same tiles passed by; false where there is none.
  PG_NOINLINE bool next_panels() {
    if (!coming.is_current) return false;
    panel_begin = panel_end++;
    tile_next = tile_first;
    while (coming.panel < panel_end) pack_slice(k_count);
    if (panel_end == block_panels) begin_next_part();
    return true;
  }

  // From here on sums are stored where they are to stay, if they are not added to: in C's rows, which may be pages apart, that takes
  // 1 to 2 % longer than side by side.
  PG_INLINE void store_to(T* C, long c_row) {
    result = is_cut() ? nullptr : C;
    result_row = c_row;
  }

  // Where the sums of the tile are kept; those of panels that are handed over one by one, in the same place, which stays in L1.
  PG_INLINE T* tile_sums() const {
    return result ? result + (first_row + row) * result_row + col : owners_sums + (keeps_sums ? row * stride : 0);
  }
  PG_INLINE bool keeps_panels() const { return result || keeps_sums || joins_rows(); }
  PG_INLINE long sums_stride() const { return result ? result_row : keeps_panels() ? stride : long(tile_size::width); }
  PG_INLINE T* panel_sums(long p) const { return tile_sums() + (keeps_panels() ? place[p].first : 0); }

  // Takes tiles of its own or, when there are none, of another member of the team.
  PG_NOINLINE bool take() {
    gemm_queue& own = team.queues[team.index];
    if (is_cut() && owner != team.index) __atomic_fetch_add(&team.queues[owner].done_by_others, tile_end - tile_first, __ATOMIC_RELEASE);
    if (is_cut() && part < 0) {
      own.sums = kept();
      open_part(0);
    }
    if (claimed > 0) {
      begin_tiles(team.index, claimed_position, claimed);
      claimed = 0;
      return true;
    }
    for (;;) {
      for (int i = 0; i < team.size; ++i)
        if (take_of((team.index + i) % team.size)) return true;
      if (!is_cut()) return false;
      // What others do of its own lies in its scratch, and the next part of k comes on top of it.
      for (long turn = 0; taken + __atomic_load_n(&own.done_by_others, __ATOMIC_ACQUIRE) < own.open; ++turn)
        if (turn > 100) sched_yield();
      if (part + 1 == parts()) return false;
      open_part(part + 1);
    }
  }

  PG_INLINE void open_part(long number) {
    gemm_queue& own = team.queues[team.index];
    set_rows_of(team.index);
    enter_part(number);
    __atomic_store_n(&own.open, own.open + tiles, __ATOMIC_RELEASE);
  }

  // Takes tiles of a member's: where k is cut, of the part of k that is packed.
  PG_INLINE bool take_of(int member) {
    set_rows_of(member);
    long position;
    const long count = claim(member, is_cut() ? part_end() : parts() * tiles, position);
    if (count > 0) begin_tiles(member, position, count);
    return count > 0;
  }

  // What a queue counts to until all tiles of the part are taken.
  PG_INLINE long part_end() const { return (part + 1) * tiles; }

  // How many tiles of a member's, from `position` on and before `end`, now are this worker's to do.
  PG_INLINE long claim(int member, long end, long& position) {
    gemm_queue& queue = team.queues[member];
    if (is_cut() && __atomic_load_n(&queue.open, __ATOMIC_ACQUIRE) < end) return 0;
    position = __atomic_load_n(&queue.taken, __ATOMIC_RELAXED);
    long count;
    do {
      if (position >= end) return 0;
      // Several at once, fewer of them towards the end: taking waits for all that an epilogue has stored, 0.1 us. Tiles that are
      // packed together are taken together, and those that pass by while B is packed.
      const long parts = is_transposed() ? 2 : 3, most = is_transposed() ? cut.group : cut.run;
      count = (tiles - position % tiles + parts - 1) / parts;
      if (count > most) count = most;
      if (member == team.index && position % tiles == 0 && tiles_while_turning() > 0) count = tiles_while_turning();
    } while (!__atomic_compare_exchange_n(&queue.taken, &position, position + count, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    if (member == team.index) taken += count;
    return count;
  }

  // So many tiles pass by while panels of B are turned; the others can be taken one by one. 0: too few.
  PG_INLINE long tiles_while_turning() const {
    const long most = tiles - tiles / 3;
    return !turns || most < least_turning_tiles ? 0 : most < turning_tiles ? most : long(turning_tiles);
  }

  PG_INLINE void begin_tiles(int member, long position, long count) {
    set_rows_of(member);
    if (position / tiles != part) enter_part(position / tiles);
    set_tiles(position % tiles, position % tiles + count);
    owner = member;
    if (is_cut()) owners_sums = static_cast<T*>(team.queues[member].sums) + block_rows * columns_before;
  }

  PG_INLINE void set_tiles(long begin, long end) {
    tile_next = tile_first = begin;
    tile_end = end;
    panel_begin = 0;
    panel_next = panel_end = coming.is_current ? 1 : block_panels;
    if (!coming.is_current) return;
    const long depth = (k_count + end - begin - 1) / (end - begin);
    coming.slices = {depth + depth % 2, 1, 1, 0};
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

  // Goes on to a part, of the rows that are set.
  PG_NOINLINE void enter_part(long number) {
    part = number;
    const typename gemm_cut<T>::part_place at = cut.part_at(part % parts());
    first_panel = panel_of_block(at.across);
    block_panels = panel_of_block(at.across + 1) - first_panel;
    col = col_begin + panel_col(first_panel);
    stride = panel_col(first_panel + block_panels) - panel_col(first_panel);
    columns = col_end - col < stride ? col_end - col : stride;
    columns_before = panel_col(first_panel) - panel_col(panel_of_block(at.first_across));
    if (joins_rows()) stride = columns;
    owners_sums = kept() + block_rows * columns_before;
    pack();
  }

  // Goes on to the next block of which sums lack only the last k, whose part of B is packed.
  PG_NOINLINE void enter_block() {
    for (;;) {
      const long down = (part + 1) / parts(), all_rows = row_end - row_begin, begin = even_cut(all_rows, cut.row_blocks, down);
      set_rows(row_begin + begin, row_begin + even_cut(all_rows, cut.row_blocks, down + 1));
      enter_part(part + 1);
      set_tiles(0, tiles);
      if (is_last_k()) return;
      for (long t = 0; t < tiles; ++t) tile(t);
    }
  }

  // ---- packing B ----

  // Packs what is left of the part, or, where micro-kernels pack the others, the first panel; then begins the next.
  PG_NOINLINE void pack() {
    const bool has_begun = coming.panels > 0 && coming.number == part;
    if (!has_begun) begin_part(part);
    k_begin = coming.k;
    k_count = coming.k_count;
    place = coming.places;
    coming.is_current = !has_begun && block_panels > 1 && !joins_rows() && tiles_while_turning() > 0;
    has_errands = is_far || update_count > 0 || coming.is_current;
    while (coming.panel < (coming.is_current ? 1 : coming.panels)) pack_slice(coming.k_count);
    if (!coming.is_current) begin_next_part();
  }

  PG_NOINLINE void begin_next_part() {
    coming.panels = coming.panel = 0;
    coming.is_current = false;
    has_errands = is_far || update_count > 0;
    if (!is_far) return;
    if (part + 1 < all_parts()) begin_part(part + 1);
    look_for_b();
  }

  PG_NOINLINE void begin_part(long number) {
    next_part& c = coming;
    panel_place* const to = c.places = is_far && place == places[0] ? places[1] : places[0];
    const typename gemm_cut<T>::part_place at = cut.part_at(number % parts());
    c.number = number;
    c.k = at.k;
    c.k_count = K - c.k < cut.k ? K - c.k : cut.k;
    c.first_panel = panel_of_block(at.across);
    c.column = panel_col(c.first_panel);
    c.panels = panel_of_block(at.across + 1) - c.first_panel;
    c.panel = c.packed = 0;
    T* packed = c.to = to == places[0] ? scratch : scratch + cut.packed_b();
    for (long p = 0; p < c.panels; ++p) {
      const long column = panel_col(c.first_panel + p), width = panel_col(c.first_panel + p + 1) - column;
      const bool is_packed = !cut.reads_b || used_columns(column, width) != width;
      to[p] = {is_packed ? packed : B + c.k * b_row + (col_begin + column) * b_col, is_packed ? width : b_row, width / PG_LANES,
               column - c.column};
      packed += is_packed ? c.k_count * width : 0;
    }
    // Where B lies transposed, of whole lines. Slices of two dozen lines instead of so many took 1 to 2 % longer, of 768 up to 1 %. Where A
    // comes from memory as well, half as many: 256 x 768 x 50257 takes 3 % less, 256 x 768 x 3072, which does not, up to 1.6 % longer.
    const long least = cut.comes_from_memory && !is_transposed() ? 96 : 192;
    constexpr long line = 64 / sizeof(T), width = tile_size::width;
    const long along = (least * line + width - 1) / width, across_it = (least + width - 1) / width * line;
    c.slices.set(c.panels, c.k_count, b_col == 1 ? along : across_it, tiles * block_panels);
  }

  PG_INLINE long used_columns(long column, long width) const {
    return col_end - col_begin - column < width ? col_end - col_begin - column : width;
  }

  // Packs so many k of the panel that is next, or what is left of it.
  PG_NOINLINE void pack_slice(long depth) {
    const next_part& c = coming;
    const panel_place& to = c.places[c.panel];
    const long column = c.column + to.first, width = to.vectors * PG_LANES, count = c.k_count - c.packed < depth ? c.k_count - c.packed : depth;
    if (to.b == c.to)
      gemm_pack(c.to + c.packed * width, width, B + (c.k + c.packed) * b_row + (col_begin + column) * b_col, b_row, b_col, count,
                used_columns(column, width));
    note_packed(count);
  }

  // So many more k of the panel are packed.
  PG_INLINE void note_packed(long count) {
    next_part& c = coming;
    c.packed += count;
    if (c.packed < c.k_count) return;
    const panel_place& to = c.places[c.panel];
    if (to.b == c.to) c.to += c.k_count * to.vectors * PG_LANES;
    c.packed = 0;
    ++c.panel;
  }

  // The next micro-kernel packs so many k of the panel that is next, if they are pairs and of whole vectors of columns.
  PG_INLINE bool turns_on_the_way(long depth) {
    const next_part& c = coming;
    const panel_place& to = c.places[c.panel];
    const long column = c.column + to.first, width = to.vectors * PG_LANES, size = sizeof(T);
    if (!c.is_current || depth % 2 != 0 || used_columns(column, width) != width) return false;
    const long ahead = c.packed + depth < c.k_count ? depth : width * b_col - c.packed;
    runs[update_count + 1].template set_turning<T>(B + c.k + c.packed + (col_begin + column) * b_col, depth / 2, to.vectors, b_col * size,
                                                   c.to + c.packed * width, width * size, ahead * size);
    return true;
  }

  // The next micro-kernels ask for what pack_slice() reads next, or all that are left for what is read where it lies.
  PG_NOINLINE void look_for_b() {
    const next_part& c = coming;
    gemm_run& run = runs[update_count + 1];
    run.left = 0;
    if (c.panel == c.panels) return;
    if (cut.reads_b) {
      run.set(B + c.k * b_row + col_begin + c.column, c.k_count,
              used_columns(c.column, panel_col(c.first_panel + c.panels) - c.column) * sizeof(T), b_row * sizeof(T));
      run.share = (run.left + tiles * block_panels - 1) / (tiles * block_panels);
      return;
    }
    const panel_place& to = c.places[c.panel];
    const long column = c.column + to.first, used = used_columns(column, to.vectors * PG_LANES), size = sizeof(T);
    const long depth = c.k_count - c.packed < c.slices.step ? c.k_count - c.packed : c.slices.step;
    const T* const b = B + (c.k + c.packed) * b_row + (col_begin + column) * b_col;
    if (b_col == 1) run.set(b, depth, used * size, b_row * size);
    else if (b_row == 1) run.set(b, used, depth * size, b_col * size);
  }

  // ---- packing A ----

  // Packs what is left of the rows of tiles from t on, and begins those of the next.
  PG_NOINLINE void enter_group(long t) {
    const long end = t + cut.group < tile_end ? t + cut.group : tile_end;
    packed_rows& c = coming_rows;
    if (c.begin != t || c.end != end || c.first_row != first_row || c.k != k_begin) begin_group(t, end);
    pack_rows(k_count);
    group = c;
    c.end = 0;
    if (!is_far) return;
    long next = end, next_end = tile_end;
    if (end == tile_end && team.size > 1 && owner == team.index && claimed == 0) {
      claimed = claim(team.index, part_end(), claimed_position);
      next = claimed_position % tiles;
      next_end = next + claimed;
    }
    if (next < next_end) begin_group(next, next + cut.group < next_end ? next + cut.group : next_end);
    look_for_rows();
  }

  PG_INLINE void begin_group(long begin, long end) {
    T* const to = packed_groups();
    coming_rows = {begin, end, first_row, k_begin, 0, is_far && group.to == to ? to + cut.packed_group() : to, {}};
    // Slices of 4 to 16 k took as long, of 32 up to 1 %, of 64 up to 6 % longer.
    coming_rows.slices.set(1, k_count, 16, (group.end - group.begin) * block_panels);
  }

  PG_NOINLINE void pack_rows(long depth) {
    packed_rows& c = coming_rows;
    const long end = c.packed + depth < k_count ? c.packed + depth : k_count;
    gemm_pack_rows(c.to, cut.packed_tile(), A + first_row + k_begin * a_col, a_col, c.packed, end, c.begin, c.end, M - first_row,
                   [&](long i) { return tile_row(i); }, depth == k_count);
    c.packed = end;
  }

  // The next micro-kernels ask for what pack_rows() reads next.
  PG_NOINLINE void look_for_rows() {
    const packed_rows& c = coming_rows;
    gemm_run& run = runs[update_count];
    run.left = 0;
    if (c.begin >= c.end || c.packed == k_count) return;
    const long from = tile_row(c.begin), depth = k_count - c.packed < c.slices.step ? k_count - c.packed : c.slices.step;
    run.set(A + first_row + from + (k_begin + c.packed) * a_col, depth, (tile_row(c.end) - from) * sizeof(T), a_col * sizeof(T));
  }

  // The next micro-kernel packs so many k, which have been asked for, if they are of pairs of tiles.
  PG_INLINE bool packs_on_the_way(long depth) {
    const packed_rows& c = coming_rows;
    const long from = tile_row(c.begin), count = c.end - c.begin, size = sizeof(T);
    if (!gemm_packs_pairs<T> || count % 2 != 0 || depth % 2 != 0 || tile_row(c.end) - from != count * tile_size::rows) return false;
    runs[update_count].set_packing(A + first_row + from + (k_begin + c.packed) * a_col, depth, count / 2, a_col * size,
                                   c.to + c.packed * tile_size::rows, cut.packed_tile() * size, tile_size::rows * size,
                                   c.packed + depth < k_count ? depth * a_col * size : 0);
    return true;
  }

  // The micro-kernels of this tile ask for the rows of another, which are read where they lie.
  PG_INLINE void look_for_a(long t) {
    gemm_run& run = runs[update_count];
    run.left = 0;
    if (t >= tiles) return;
    const long from = tile_row(t), next_rows = tile_row(t + 1) - from, size = sizeof(T);
    const T* const next = A + (first_row + from) * a_row + k_begin * a_col;
    if (a_col == 1) run.set(next, next_rows, k_count * size, a_row * size);
    else if (a_row == 1) run.set(next, k_count, next_rows * size, a_col * size);
    run.share = (run.left + panel_end - panel_begin - 1) / (panel_end - panel_begin);
  }

  // ---- tiles ----

  PG_NOINLINE void tile(long t) {
    enter_tile(t);
    sum_panels();
  }

  PG_NOINLINE void enter_tile(long t) {
    panel_next = panel_begin;
    row = tile_row(t);
    rows = tile_row(t + 1) - row;
    if (rows != kernel_rows) {
      kernel_rows = rows;
      for (int v = 1; v <= tile_size::vectors; ++v) kernels[v] = gemm_kernel_for<T, false>(int(rows), v);
    }
    tile_a = A + (first_row + row) * a_row + k_begin * a_col;
    tile_a_row = a_row;
    tile_a_col = a_col;
    // Two panels read a tile's rows too seldom to pay for the copy: A [1024, 1024] and B [1024, 16] took 1.3 times as long with it.
    if (copies_rows() && k_count >= 64 && block_panels >= 3) {
      tile_a_row = cut.k + PG_LANES;
      gemm_copy_rows(packed_groups(), tile_a_row, tile_a, a_row, rows, k_count);
      tile_a = packed_groups();
    } else if (packs_rows()) {
      if (t < group.begin || t >= group.end || group.first_row != first_row || group.k != k_begin) enter_group(t);
      tile_a = group.to + (t - group.begin) * cut.packed_tile();
      tile_a_col = rows;
    }
    if (is_far && !packs_rows()) look_for_a(t + 1);
  }

  PG_NOINLINE void sum_panels() {
    const bool is_joined = stride % PG_LANES != 0;  // Then the last panel comes first.
    for (; panel_next < panel_end; ++panel_next)
      sum_panel(!is_joined ? panel_next : panel_next == 0 ? block_panels - 1 : panel_next - 1);
  }

  PG_INLINE void sum_panel(long p) {
    if (has_errands) return sum_panel_on_errands(p);
    const panel_place& panel = place[p];
    kernels[panel.vectors](k_count, tile_a, tile_a_row, tile_a_col, panel.b, panel.b_k, nullptr, panel_sums(p), sums_stride(), k_begin > 0);
  }

  PG_NOINLINE void sum_panel_on_errands(long p) {
    const panel_place& panel = place[p];
    T* const to = panel_sums(p);
    constexpr int most = tile_size::vectors, least = most == 3 ? 2 : 1;
    const bool goes_ahead = rows == tile_size::rows && panel.vectors >= least;
    long rows_depth = 0, turned_depth = 0;  // So many k of rows of A, or of columns of B, are packed by the micro-kernel.
    if (coming.panel < coming.panels && !cut.reads_b && coming.slices.is_due()) {
      const long left = coming.k_count - coming.packed, depth = left < coming.slices.step ? left : coming.slices.step;
      if (goes_ahead && turns_on_the_way(depth)) {
        turned_depth = depth;
      } else {
        pack_slice(depth);
        look_for_b();
      }
    }
    if (coming_rows.begin < coming_rows.end && coming_rows.packed < k_count && coming_rows.slices.is_due()) {
      const long left = k_count - coming_rows.packed, depth = left < coming_rows.slices.step ? left : coming_rows.slices.step;
      if (packs_on_the_way(depth)) {
        rows_depth = depth;
      } else {
        pack_rows(depth);
        look_for_rows();
      }
    }
    if (goes_ahead) {
      constexpr auto reads = gemm_run::reads, packs = gemm_packs_pairs<T> ? gemm_run::packs : reads;
      constexpr auto turned = transposes_pairs<T> ? gemm_run::turns : reads;
      const bool is_wide = panel.vectors == most;
      const auto plain = is_wide ? gemm_kernel_ahead<T, most, reads> : gemm_kernel_ahead<T, least, reads>;
      const auto packing = is_wide ? gemm_kernel_ahead<T, most, packs> : gemm_kernel_ahead<T, least, packs>;
      const auto turning = is_wide ? gemm_kernel_ahead<T, most, turned> : gemm_kernel_ahead<T, least, turned>;
      const auto kernel = rows_depth > 0 ? packing : turned_depth > 0 ? turning : plain;
      kernel(k_count, tile_a, tile_a_row, tile_a_col, panel.b, panel.b_k, to, sums_stride(), k_begin > 0, first_run(panel),
             runs + update_count + (is_far || coming.is_current ? 2 : 0));
    } else {
      kernels[panel.vectors](k_count, tile_a, tile_a_row, tile_a_col, panel.b, panel.b_k, nullptr, to, sums_stride(), k_begin > 0);
    }
    if (turned_depth > 0) {
      for (gemm_run& run = runs[update_count + 1]; run.left > 0;) run.template turn<T>();
      note_packed(turned_depth);
    }
    if constexpr (gemm_packs_pairs<T>) {
      if (rows_depth == 0) return;
      for (gemm_run& run = runs[update_count]; run.left > 0;) run.template pack<T>();
      coming_rows.packed += rows_depth;
    }
  }

  // The lines of all updated matrices under a panel, if its sums are complete with it, and what is read next.
  PG_INLINE gemm_run* first_run(const panel_place& panel) {
    if (!is_last_k()) return runs + update_count;
    for (int u = 0; u < update_count; ++u) {
      const gemm_update& update = updates[u];
      runs[u].set(static_cast<const char*>(update.start) + (first_row + row) * update.row + (col + panel.first) * update.size,
                  tile_size::rows, panel.vectors * PG_LANES * update.size, update.row);
      if (!is_vast) runs[u].kind = gemm_run::writes;
    }
    return runs;
  }
};

}  // namespace pg

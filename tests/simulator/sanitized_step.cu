// A step's emitted text, PG_TEST_STEP, as a program of its own, which sanitizers need: `step SEED BEFORE AFTER` reads all
// arguments, one after another, from the file BEFORE, runs the step on them, and writes them to the file AFTER.
#include <stdio.h>
#include <stdlib.h>

#include PG_TEST_STEP

int main(int count, char** arguments) {
  if (count != 4) return 2;
  pg_sim_configure((unsigned long)atoi(arguments[1]), 0, 0);
  constexpr int slot_count = sizeof slots / sizeof *slots;
  void* passed[slot_count];
  FILE* file = fopen(arguments[2], "rb");
  if (!file) return 2;
  for (int i = 0; i < slot_count; ++i) {
    const size_t bytes = size_t(slots[i].bytes);
    passed[i] = malloc(bytes + 1);
    if (fread(passed[i], 1, bytes, file) != bytes) return 2;
  }
  fclose(file);
  pg_failure failure = {};
  if (pg_step_run(passed, nullptr, nullptr, 1, &failure) != 0) {
    printf("%s\n", failure.text);
    return 3;
  }
  file = fopen(arguments[3], "wb");
  if (!file) return 2;
  for (int i = 0; i < slot_count; ++i) {
    if (fwrite(passed[i], 1, size_t(slots[i].bytes), file) != size_t(slots[i].bytes)) return 2;
    free(passed[i]);
  }
  return fclose(file);
}

// Preloaded, fills whatever is allocated with the byte in DIRTY (0 to 255): what nobody wrote then
// is that, and not what the memory happened to hold. 255 makes every float of it NaN.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

extern void* __libc_malloc(size_t size);
extern void* __libc_memalign(size_t alignment, size_t size);

static void* filled(void* memory, size_t size) {
  const char* byte = getenv("DIRTY");
  if (memory != NULL && byte != NULL) memset(memory, atoi(byte), size);
  return memory;
}

void* malloc(size_t size) { return filled(__libc_malloc(size), size); }

void* memalign(size_t alignment, size_t size) {
  return filled(__libc_memalign(alignment, size), size);
}

void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void** memory, size_t alignment, size_t size) {
  *memory = memalign(alignment, size);
  return *memory == NULL ? ENOMEM : 0;
}

// Memory that an item of work needs for as long as it lasts.

INLINE int padded(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }

template <typename T>
INLINE T* take(char*& place, int64_t count) {
    T* taken = (T*)place;
    place += padded(count * sizeof(T), 64);
    return taken;
}

// A thread's memory, as large as it has ever been needed.
static char* thread_memory(int64_t num_bytes) {
    struct Memory {
        char* place = nullptr;
        int64_t size = 0;
        ~Memory() { free(place); }
    };
    static thread_local Memory memory;
    if (memory.size < num_bytes) {
        free(memory.place);
        memory.place = (char*)aligned_alloc(64, padded(num_bytes, 4096));
        memory.size = num_bytes;
    }
    return memory.place;
}

# llama-cpp-python needs the library alone; without these parts it compiles in under half the time.
set(LLAMA_BUILD_COMMON OFF)

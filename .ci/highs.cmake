# Options with which the tests compile HiGHS, their referee: a toolchain file of CMake.
#
# Several sources in one compilation read the headers once, and little optimisation suffices for small
# problems. Both together take 163 s of processor time. A build without this file, such as that of the benchmarks, optimises
# fully.
set(CMAKE_UNITY_BUILD ON)
set(CMAKE_CXX_FLAGS_RELEASE "-O1 -DNDEBUG" CACHE STRING "")

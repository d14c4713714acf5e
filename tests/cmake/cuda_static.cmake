# SPDX-License-Identifier: Apache-2.0
# What nvcc, ptxas and the code that they make must show. Needs the CUDA Toolkit and no device.
# Included by tests/CMakeLists.txt where there is one.

set(nvcc "${CMAKE_CUDA_COMPILER}" -std=c++20 "-I${PROJECT_SOURCE_DIR}/include"
  -Werror all-warnings -Xcompiler=-Wall,-Wextra,-Wshadow,-Werror)
if(CMAKE_CUDA_HOST_COMPILER)
  list(APPEND nvcc -ccbin "${CMAKE_CUDA_HOST_COMPILER}")
endif()
set(archs sm_80 sm_90a sm_100)
set(code "")
foreach(arch IN LISTS archs)
  string(REPLACE "sm_" "compute_" virtual "${arch}")
  list(APPEND code -gencode "arch=${virtual},code=${arch}")
endforeach()
set(scratch "${CMAKE_CURRENT_BINARY_DIR}/cuda_static")
file(MAKE_DIRECTORY "${scratch}/alone")

function(expar_static_test name)
  add_test(NAME cuda_static.${name} COMMAND ${ARGN})
  set_tests_properties(cuda_static.${name} PROPERTIES LABELS cuda_static TIMEOUT 300)
endfunction()

# --- the headers that need nvcc: each alone is read as host's and as device's code, all together are
# compiled for the host and for every device -------------------------------------------------------
file(GLOB_RECURSE cuda_headers CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}/include"
  "${PROJECT_SOURCE_DIR}/include/expar/*.cuh" "${PROJECT_SOURCE_DIR}/include/expar/comm/nccl*.hpp")
set(nccl_include "")
if(NOT TARGET expar::nccl)
  list(FILTER cuda_headers EXCLUDE REGEX "/nccl[^/]*$")
elseif(NOT NCCL_INCLUDE_DIR IN_LIST CMAKE_CXX_IMPLICIT_INCLUDE_DIRECTORIES)
  set(nccl_include -isystem "${NCCL_INCLUDE_DIR}")
endif()
function(expar_alone_test name)
  expar_static_test(alone.${name} ${nvcc} ${ARGN} -o "${scratch}/alone/${name}.out")
  set_tests_properties(cuda_static.alone.${name} PROPERTIES LABELS alone)
endfunction()
file(WRITE "${scratch}/alone/empty.cu" "")
set(together "")
foreach(header IN LISTS cuda_headers)
  string(REGEX REPLACE "^expar/|\\.[a-z]+$" "" name "${header}")
  string(REPLACE "/" "." name "${name}")
  set(include "")
  if(header MATCHES "/nccl[^/]*$")
    set(include ${nccl_include})
  endif()
  expar_alone_test(${name} ${include} -arch=compute_80 -include "${header}"
    -cuda -fdevice-syntax-only "${scratch}/alone/empty.cu")
  string(APPEND together "#include <${header}>\n")
endforeach()
file(CONFIGURE OUTPUT "${scratch}/alone/together.cu" CONTENT "${together}")
expar_alone_test(together ${nccl_include} ${code} -c "${scratch}/alone/together.cu")

# --- expar.hpp brings no CUDA with it, not even where nvcc compiles it -------------------------------
expar_static_test(umbrella "${CMAKE_COMMAND}" "-DCOMPILER=${CMAKE_CUDA_COMPILER}"
  "-DINCLUDE=${PROJECT_SOURCE_DIR}/include" -DLANGUAGE=cu
  -P "${CMAKE_CURRENT_SOURCE_DIR}/cmake/umbrella.cmake")

# --- compile_fail -----------------------------------------------------------------------------------
file(GLOB mistakes CONFIGURE_DEPENDS RELATIVE "${CMAKE_CURRENT_SOURCE_DIR}" "compile_fail/*.cu")
foreach(mistake IN LISTS mistakes)
  cmake_path(GET mistake STEM name)
  expar_static_test(compile_fail.${name} "${CMAKE_COMMAND}" "-DCOMPILER=${CMAKE_CUDA_COMPILER}"
    "-DINCLUDE=${PROJECT_SOURCE_DIR}/include" "-DSOURCE=${CMAKE_CURRENT_SOURCE_DIR}/${mistake}"
    "-DOUTPUT=${scratch}/${name}.ptx" -P "${CMAKE_CURRENT_SOURCE_DIR}/cmake/compile_fail.cmake")
endforeach()

# --- registers, spills and memory accesses of the kernels that matter --------------------------------
# A spill, or any use of local memory, is an error of the compilation.
set(cubins "")
foreach(arch IN LISTS archs)
  add_custom_command(OUTPUT "${scratch}/${arch}.cubin" "${scratch}/${arch}.log"
    COMMAND "${CMAKE_COMMAND}" "-DLOG=${scratch}/${arch}.log"
      -P "${CMAKE_CURRENT_SOURCE_DIR}/cmake/log.cmake" --
      ${nvcc} -O3 -arch=${arch} -cubin -Xptxas -v,-warn-spills,-warn-lmem-usage,-Werror
      -MD -MF "${scratch}/${arch}.d" -MT "${scratch}/${arch}.cubin"
      -o "${scratch}/${arch}.cubin" "${CMAKE_CURRENT_SOURCE_DIR}/cuda/kernels.cu"
    DEPENDS cuda/kernels.cu cmake/log.cmake
    DEPFILE "${scratch}/${arch}.d"
    COMMENT "Compiling the recorded kernels for ${arch}"
    VERBATIM)
  list(APPEND cubins "${scratch}/${arch}.cubin")
endforeach()
add_custom_target(expar_cuda_kernels ALL DEPENDS ${cubins})
add_executable(expar_cuda_figures cuda/figures.cpp)
target_compile_features(expar_cuda_figures PRIVATE cxx_std_20)
set(table "${CMAKE_CURRENT_SOURCE_DIR}/cuda/registers.txt" ${CMAKE_CUDA_COMPILER_VERSION})
expar_static_test(kernels expar_cuda_figures ${table} check "${scratch}" ${archs})
add_custom_target(expar_record_figures
  COMMAND expar_cuda_figures ${table} record "${scratch}" ${archs}
  DEPENDS expar_cuda_kernels)

# SPDX-License-Identifier: Apache-2.0
# The headers of interop/: for each whose library is found a program, interop/<name>.cpp, which begins
# with it, and the mistakes that it answers with a sentence, interop/compile_fail/<name>_*.cpp.

function(expar_interop name)
  add_executable(expar_interop_${name} interop/${name}.cpp)
  target_include_directories(expar_interop_${name} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
  target_compile_options(expar_interop_${name} PRIVATE ${run_once})
  target_link_libraries(expar_interop_${name} PRIVATE
    expar::expar Catch2::Catch2WithMain ${ARGN})
  add_test(NAME interop.${name} COMMAND expar_interop_${name})
  set_tests_properties(interop.${name} PROPERTIES LABELS interop TIMEOUT 300)

  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    return()
  endif()
  set(folders "")
  if(ARGN)
    get_target_property(folders ${ARGV1} INTERFACE_INCLUDE_DIRECTORIES)
    list(JOIN folders ":" folders)
  endif()
  file(GLOB mistakes CONFIGURE_DEPENDS "interop/compile_fail/${name}_*.cpp")
  foreach(mistake IN LISTS mistakes)
    cmake_path(GET mistake STEM stem)
    add_test(NAME interop.compile_fail.${stem}
      COMMAND "${CMAKE_COMMAND}" "-DCOMPILER=${CMAKE_CXX_COMPILER}"
        "-DINCLUDE=${PROJECT_SOURCE_DIR}/include" "-DSOURCE=${mistake}"
        -P "${CMAKE_CURRENT_SOURCE_DIR}/cmake/compile_fail.cmake")
    set_tests_properties(interop.compile_fail.${stem} PROPERTIES
      LABELS interop TIMEOUT 300 ENVIRONMENT "CPATH=${folders}")
  endforeach()
endfunction()

if(Eigen3_FOUND)
  expar_interop(eigen Eigen3::Eigen)
endif()
if(dlpack_FOUND)
  expar_interop(dlpack dlpack::dlpack)
endif()
if(Torch_FOUND)
  expar_interop(torch ${TORCH_LIBRARIES})
  expar_interop(torch_layer ${TORCH_LIBRARIES})
endif()
try_compile(has_float16
  SOURCE_FROM_CONTENT has_float16.cpp "#include <expar/interop/float16.hpp>\nint main() {}\n"
  CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${PROJECT_SOURCE_DIR}/include" CXX_STANDARD 20)
if(has_float16)
  expar_interop(float16)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    add_test(NAME interop.compile_fail.float16
      COMMAND "${CMAKE_COMMAND}" "-DCOMPILER=${CMAKE_CXX_COMPILER}"
        "-DINCLUDE=${PROJECT_SOURCE_DIR}/include"
        "-DSOURCE=${PROJECT_SOURCE_DIR}/include/expar/interop/float16.hpp"
        "-DOPTION=-U__FLT16_MANT_DIG__"
        "-DSENTENCE=float16.hpp: this compiler has neither _Float16 nor __bf16"
        -P "${CMAKE_CURRENT_SOURCE_DIR}/cmake/compile_fail.cmake")
    set_tests_properties(interop.compile_fail.float16 PROPERTIES LABELS interop)
  endif()
endif()

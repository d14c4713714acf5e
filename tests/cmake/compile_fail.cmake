# SPDX-License-Identifier: Apache-2.0
# Compiles SOURCE twice: as it is, which succeeds, and with EXPAR_MISTAKE, which fails with the
# sentence that its first line states: "// error: <sentence>". A .cu is compiled to PTX, to OUTPUT.
# With OPTION, that is the mistake, and SENTENCE is all that the compiler says before it stops; what
# other tests compile without it is not compiled here.

if(OPTION)
  set(mistake "${OPTION}")
  set(sentence "${SENTENCE}")
else()
  set(mistake -DEXPAR_MISTAKE)
  file(STRINGS "${SOURCE}" first_line LIMIT_COUNT 1)
  if(NOT first_line MATCHES "^// error: (.+)$")
    message(FATAL_ERROR "${SOURCE}: the first line is not '// error: <sentence>'")
  endif()
  string(REPLACE "\\;" ";" sentence "${CMAKE_MATCH_1}")
endif()
set(compile "${COMPILER}" -std=c++20 "-I${INCLUDE}")
if(SOURCE MATCHES "\\.cu$")
  list(APPEND compile -arch=sm_80 -ptx -o "${OUTPUT}")
else()
  list(APPEND compile -fsyntax-only -fmessage-length=0)
endif()

if(NOT OPTION)
  execute_process(COMMAND ${compile} "${SOURCE}" RESULT_VARIABLE result ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message("${output}")
    message(FATAL_ERROR "without the mistake it must compile")
  endif()
endif()
execute_process(COMMAND ${compile} ${mistake} "${SOURCE}"
  RESULT_VARIABLE result ERROR_VARIABLE output)
if(result EQUAL 0)
  message(FATAL_ERROR "with the mistake it must not compile")
endif()
# The sentence is the first error, so that nobody searches for it.
string(REGEX MATCH "error: [^\n]*" first "${output}")
string(FIND "${first}" "${sentence}" place)
if(place EQUAL -1)
  message("${output}")
  message(FATAL_ERROR "the compiler does not say first: ${sentence}")
endif()
string(REGEX MATCHALL ": error: " errors "${output}")
list(LENGTH errors count)
if(OPTION AND NOT count EQUAL 1)
  message("${output}")
  message(FATAL_ERROR "the compiler gives ${count} errors besides the one that ends it")
endif()

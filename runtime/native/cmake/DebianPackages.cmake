# Dependencies by the Debian package that they come from, which a refusal names.

function(sana_rt_missing what package)
  message(FATAL_ERROR "${what} is missing. On Debian: apt-get install ${package}")
endfunction()

macro(sana_rt_debian_package name package)
  find_package(${name} QUIET ${ARGN})
  if(NOT ${name}_FOUND)
    sana_rt_missing(${name} ${package})
  endif()
endmacro()

macro(sana_rt_debian_module prefix module package)
  pkg_check_modules(${prefix} QUIET IMPORTED_TARGET ${module})
  if(NOT ${prefix}_FOUND)
    sana_rt_missing("${module}" ${package})
  endif()
endmacro()

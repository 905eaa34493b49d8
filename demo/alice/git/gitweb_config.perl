# The configuration of alice's gitweb: what lies in her home, nothing else.
our $projectroot = "$ENV{HOME}/repos";
our $site_name   = "alice's repositories";
our @stylesheets = ("/static/gitweb.css");
our $logo        = "/static/git-logo.png";
our $favicon     = "/static/git-favicon.png";
our $javascript  = "/static/gitweb.js";
1;

package Serai::Script;

# One CGI script: how it must be run, told from its text before it first runs
# and from what compiling it has left, and its code.

use v5.36;
use B ();
use Cwd ();
use POSIX ();
use Time::HiRes ();
use Serai::Modules;
use Serai::Override;
use Serai::Pads;
use Serai::Program;
use Serai::Symbols;

our $package;    # where its __DATA__ stands

# Settings of CGI.pm that a script's `use` makes, and those of CGI::Carp.
our @OF_CGI = qw(XHTML NOSTICKY NPH DEBUG TABINDEX CLOSE_UPLOAD_FILES HEADERS_ONCE USE_PARAM_SEMICOLONS
    NO_UNDEF_PARAMS PARAM_UTF8 PUTDATA_UPLOAD APPEND_QUERY_STRING POST_MAX DISABLE_UPLOADS LIST_CONTEXT_WARN);
our @OF_CARP = qw(WRAP WARN NO_TIMESTAMP TO_BROWSER CUSTOM_MSG DIE_HANDLER EMIT_WARNINGS);

# A word that is called, rather than a key, a method or a part of a name.
my $CALL = qr/(?<![>:{\$\@%&\w'"-])/;
my $ARGS = qr/\b\s*(?!=>)(?=[;(\s'"\$\@{)])/;

# What keeps a script from running inside the worker: [way, its mark, the reason].
# $1 of the mark is the reason's %s.
my @APART = (
    ['forked', qr/$CALL(?:POSIX::)?(fork|exec|setsid|setpgrp|setpriority|nice|dump|_exit|setlocale|sigprocmask|setrlimit|BSD::Resource|dup2)$ARGS/, 'it calls %s'],
    ['forked', qr/(\$\^S)\b|(\$EXCEPTIONS_BEING_CAUGHT)\b/, 'it asks whether an eval is around it'],
    ['forked', qr/\$SIG\{\s*['"]?(?!__)[A-Z]+['"]?\s*\}\s*=\s*sub\s*\{[^}]*\bexit\b/, 'a handler of a signal exits'],
    ['forked', qr/\A(?!.*\bSIG\b.*\bALRM\b).*$CALL\b(alarm)$ARGS/s, 'it calls %s and handles no signal'],
    ['forked', qr/\bkill\b[^;]*\$(?:\$|PID\b|PROCESS_ID\b)/, 'it sends itself a signal'],
    ['forked', qr/(\$[<>()]|\$(?:REAL|EFFECTIVE)_[UG](?:SER|ROUP)_ID|\$[EU][UG]ID)\s*=[^=~]/, 'it sets %s'],
);
# A script that has what it prints sent at once, and what it may do so that the
# layer for that does not see all of its output.
my $FLUSHES = qr/(?:\$\||\$OUTPUT_AUTOFLUSH)\s*(?:=\s*[^0\s=~]|\+\+)|(?:\+\+|--)\s*\$\|(?!\|)|STDOUT->autoflush/;
my $AROUND = qr/$CALL(syswrite|system|fileno|binmode\s*\(?\s*\\?\*?STDOUT\s*(?:[);]|,\s*['"]:(?:raw|bytes|pop))|open\b[^;]*[>+]&)|\|\s*(-)|(`|\bqx\b)|['"]\s*(\|)/;
# The same of what runs while it is compiled, which would not run again.
my $OF_REQUEST = qr/\b(time|localtime|gmtime|rand|srand|STDIN|print|printf|exit|exec|fork|sleep|alarm|open|opendir|socket|connect|tie|QUERY_STRING|PATH_INFO|SCRIPT_NAME|HTTPS|(?:REMOTE|HTTP|REQUEST|CONTENT|SERVER|AUTH)_\w+|param)\b|(\$\$)(?!\w)/;

# is_script says whether a file is a script rather than data: by its name, or
# by its first two bytes.
sub is_script ($path) {
    return 1 if $path =~ /\.(?:cgi|pl|fcgi)\z/;
    open my $file, '<:raw', $path or return 0;
    read $file, my $start, 2;
    return ($start // '') eq '#!';
}

# new reads and compiles a script. {error} is a sentence where that failed. A
# reason given is why it must be a process for each request.
sub new ($class, $path, $name, $why = undef) {
    my $script = bless { path => $path, name => $name, mode => 'inside', warn => 0, switches => '' }, $class;
    $script->{stat} = stat_of($path);
    if (!open my $file, '<:raw', $path) { $script->{error} = "$name cannot be read: $!: its owner must be allowed to" }
    else {
        local $/;
        my $source = readline($file) // '';
        $script->choose($source);
        @$script{qw(mode why)} = ('exec', $why) if defined $why;
        $script->compile($source) if $script->{mode} ne 'exec';
    }
    if ($script->{mode} eq 'exec' && !$script->{perl} && !-x $path) {
        $script->{error} = "$name is no Perl program, so it must be executable: chmod +x $name";
    }
    return $script;
}

sub stat_of ($path) { return join ' ', (Time::HiRes::stat($path))[0, 1, 7, 9] }

# current says whether the file is the one that was compiled.
sub current ($script) { return !$script->{spent} && $script->{stat} eq stat_of($script->{path}) }

sub directory ($script) { return $script->{path} =~ s{/[^/]*\z}{}r }

# apart notes that a script cannot run inside the worker.
sub apart ($script, $mode, $why) { @$script{qw(mode why)} = ($mode, $why) }

# choose tells from the text how a script must be run.
sub choose ($script, $source) {
    my ($line) = $source =~ /\A#!\s*(.*?)\s*$/m;
    $script->{perl} = 1;
    if (defined $line) {
        if ($line !~ /perl/) {
            $script->{perl} = 0;
            return $script->apart('exec', 'it is no Perl program');
        }
        ($script->{switches}) = $line =~ /perl[0-9.]*\s+(-.*)/ ? $1 : '';
        $script->{warn} = 1 if $script->{switches} =~ /\A-\w*w/;
    }
    return $script->apart('exec', "of the switches $script->{switches}") if $script->{switches} =~ /[^-w\s]/;
    my $code = code($source);
    return $script->apart('exec', "it uses $1 while it is compiled") if join("\n", early($code)) =~ $OF_REQUEST;
    return $script->apart('forked', 'its name begins with nph-') if $script->{path} =~ m{/nph-[^/]*\z};
    for (@APART) {
        my ($mode, $mark, $why) = @$_;
        next if $code !~ $mark;
        my $what = $1 // '';
        return $script->apart($mode, $why =~ s/%s/$what/r);
    }
    return if $code !~ $FLUSHES;
    return $script->apart('forked', 'it sets $| to send what programs or its handles write too') if $code =~ $AROUND;
    $script->{streams} = 1;
}

# code is the text without what is not run.
sub code ($source) {
    my $code = $source =~ s/^__(?:END|DATA)__\r?$.*//msr;
    $code =~ s/^=[a-zA-Z].*?(?:^=cut\b.*?$|\z)//msg;
    $code =~ s/(?:^|(?<=[\s;}]))#.*$//mg;
    $code =~ s/select\s*\(?\s*\(\s*select\b[^;]*\)\s*\[0\]\s*\)?//g;    # of another handle
    return $code;
}

# early is what runs while a text is compiled.
sub early ($code) {
    my @early;
    push @early, $1 while $code =~ /\b(BEGIN\s*(\{(?:[^{}]++|(?-1))*+\})|use\s+(?:constant|lib)\b[^;]*;)/g;
    return @early;
}

# compile makes {code} of the source.
sub compile ($script, $source) {
    my $path = $script->{path};
    my $code = code($source);
    if ($source =~ /^__(END|DATA)__\r?\n/m) {
        my ($kind, $start) = ($1, $-[0]);
        @$script{qw(data data_at)} = ($source, $+[0]);
        $script->{data_utf8} = $code =~ /\buse\s+utf8\b/;
        substr $source, $start, length $source, $kind eq 'DATA' ? "BEGIN { \$Serai::Script::package = __PACKAGE__ }\n" : '';
    }
    my @pod = $source =~ /^=([a-zA-Z]\w*)/mg;
    $source .= "\n\n=cut\n" if @pod && $pod[-1] ne 'cut';

    my $error = $script->compile_as("package main; sub serai_main { my \$serai_end;\n#line 1 \"$path\"\n$source\n;Serai::Program::at_end()}");
    $script->{data_in} = $package;
    if ($error =~ /Serai::Exit/) { $script->apart('exec', 'it exits while it is compiled') }
    elsif (length $error) {
        require Serai::Site;
        my $root = substr $path, 0, length($path) - length($script->{name}) - 1;
        $script->{error} = Serai::Site::sentence($error, $root, $script->{name});
    }
    elsif (defined(my $other = Serai::Modules::other_than($code, $script->{inc} // \@INC))) {
        $script->apart('exec', "its $other is not the one that is loaded already");
    }
    elsif ($script->{moved}) { $script->apart('exec', 'it moves standard error while it is compiled') }
    my %declared = map { $_ => 1 } $code =~ /\bpackage\s+(\w+(?:::\w+)*)/g;
    my %seen;
    my @packages = grep { !$seen{$_}++ } keys %declared, $code =~ /(?<![\w:])(\w+(?:::\w+)*)(?=::\w)/g;
    $script->{symbols} = Serai::Symbols->taken($path, \@packages, \%declared,
        [grep { !$seen{$_}++ } $code =~ /([\$\@%]\w+(?:::\w+)+)/g]);
    return $script->discard if defined $script->{error} || $script->{mode} eq 'exec';
    $script->{code} = *{ Serai::Symbols::glob_of('main::serai_main') }{CODE};
    $script->{pads} = Serai::Pads->new($path, $script->{code}, $script->{symbols}->subs, $script->{ends});
    my $why = $script->{pads}{why} // $script->{symbols}->structure;
    $script->apart('forked', $why) if defined $why && $script->{mode} eq 'inside';
}

# compile_as compiles a text, and notes what that has changed in the process. It
# returns the error.
sub compile_as ($script, $text) {
    Serai::Symbols::clear();
    my %signals = %SIG;
    # That is dealt with (inspect), and no news to the customer.
    $SIG{__WARN__} = sub { print STDERR $_[0] if $_[0] !~ /\AVariable "\S+" (?:will not stay shared|is not available) at / };
    my %handlers = %SIG;
    my ($ends, @inc) = (scalar @{ ends_of_perl() }, @INC);
    my %env = %ENV;
    no warnings 'once';
    CGI::initialize_globals() if $INC{'CGI.pm'};
    $CGI::Carp::WRAP = $CGI::Carp::WARN = 0 if $INC{'CGI/Carp.pm'};
    chdir $script->directory;
    my $umask = umask;
    my $format = *STDOUT{FORMAT} // 0;
    my $error = '';
    Serai::Program::standard('STDOUT', '>', 1, $Serai::Scripts::LOG);
    SERAI_SCRIPT: {
        local ($@, $^W) = ('', $script->{warn});
        local *0 = \$script->{path};
        local @ARGV;
        FindBin::again() if $INC{'FindBin.pm'};
        local $Serai::Override::running = $$;
        $package = 'main';
        Serai::Scripts::compile_clean($text);
        $error = "$@";
    }
    $script->{ends} = [new_ends($ends)];
    $script->{handlers} = { map { $_ => $SIG{$_} } grep { ($SIG{$_} // '') ne ($handlers{$_} // '') } keys %SIG };
    # CGI::Carp sets that when it is loaded, for all that follow.
    $script->{handlers}{__WARN__} //= \&CGI::Carp::warn if $INC{'CGI/Carp.pm'} && $text =~ /^\s*(?:BEGIN\s*\{\s*)?use\s+CGI::Carp\b/m;
    Serai::Program::set_handlers(\%signals);
    $script->{env} = { map { $_ => $ENV{$_} } grep { !defined $env{$_} || $env{$_} ne $ENV{$_} } keys %ENV };
    $script->{unset} = [grep { !exists $ENV{$_} } keys %env];
    %ENV = %env;
    $script->{inc} = [@INC] if "@INC" ne "@inc";
    @INC = @inc;
    Serai::Program::forget_files();
    $script->{umask} = umask if umask != $umask;
    umask $umask;
    my $cwd = Cwd::getcwd() // '';
    $script->{cwd} = $cwd if $cwd ne (Cwd::realpath($script->directory) // $cwd);
    $script->{format} = *STDOUT{FORMAT} if (*STDOUT{FORMAT} // 0) != $format;
    $script->{autoflush} = do { my $old = select STDOUT; my $is = $|; select $old; $is };
    $script->{layers} = { map { $_ => Serai::Program::layers($_) } qw(STDIN STDOUT STDERR) };
    $script->{moved} = join(' ', (stat STDERR)[0, 1]) ne join(' ', (stat $Serai::Scripts::LOG)[0, 1]);
    Serai::Program::rest();
    Serai::Modules::note($script->directory);
    no strict 'refs';
    $script->{cgi} = { map { $_ => ${"CGI::$_"} } @OF_CGI } if $INC{'CGI.pm'};
    $script->{carp} = { map { $_ => ${"CGI::Carp::$_"} } @OF_CARP } if $INC{'CGI/Carp.pm'};
    return $error;
}

# ends_of_perl is the interpreter's own list of END blocks, the last one first.
sub ends_of_perl () {
    my $list = B::end_av();
    return $list->isa('B::AV') ? $list->object_2svref : [];
}

# new_ends takes out the END blocks that were added to so many. Those of modules
# stay: a module is loaded once and ends with the process.
sub new_ends ($before) {
    my $list = ends_of_perl();
    my $added = @$list - $before;
    return if $added <= 0;
    my @ends = (B::end_av()->ARRAY)[0 .. $added - 1];
    my @mine = grep { $ends[$_]->FILE !~ /\.pm\z/ } 0 .. $#ends;
    my @code = map { $ends[$_]->object_2svref } @mine;
    splice @$list, $_, 1 for reverse @mine;
    return @code;
}

# discard frees what was compiled.
sub discard ($script) {
    my $symbols = delete $script->{symbols} or return;
    delete @$script{qw(code pads ends format)};
    $symbols->discard;
}

1;

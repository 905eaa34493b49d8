# A small Dancer2 application: who you are is kept in a session, what you
# upload in a directory beside the code.
package Notes;
use Dancer2;
use Digest::SHA 'sha256_hex';
use File::Basename 'dirname';

my $kept = dirname(__FILE__) . '/kept';
set appname  => 'Notes';
set views    => dirname(__FILE__) . '/views';
set template => 'template_toolkit';
set layout   => 'main';
set session  => 'YAML';
set engines  => { session => { YAML => { session_dir => dirname(__FILE__) . '/sessions' } } };
set charset  => 'UTF-8';

sub files {
    opendir my $d, $kept or return [];
    return [ sort grep { !/^\./ } readdir $d ];
}

get '/' => sub {
    session visits => (session('visits') // 0) + 1;
    template index => { name => session('name'), visits => session('visits'), files => files() };
};

post '/name' => sub {
    session name => body_parameters->get('name');
    redirect '/';
};

post '/upload' => sub {
    my $upload = upload('file') or send_error('choose a file', 400);
    my ($name) = $upload->basename =~ /([\w.-]{1,60})\z/ or send_error('give the file a plain name', 400);
    send_error('give the file a plain name', 400) if $name =~ /^\./;
    mkdir $kept;
    $upload->copy_to("$kept/$name");
    header 'X-Sha256' => sha256_hex($upload->content);
    status 201;
    return "kept $name, " . $upload->size . " bytes\n";
};

get '/file/:name' => sub {
    my $name = route_parameters->get('name');
    send_error('no such file', 404) if $name !~ /^[\w-][\w.-]*\z/ || !-f "$kept/$name";
    send_file("$kept/$name", system_path => 1, content_type => 'application/octet-stream');
};

get '/whoami' => sub {
    content_type 'text/plain';
    return join ' ', 'uid', $<, 'gid', $( + 0, 'pid', $$, 'perl', $^V, "\n";
};

# For the tests: what a customer's mistake or misfortune looks like.
get '/hungry' => sub { my @a; push @a, 'x' x 1_048_576 while 1 };
get '/dies'   => sub { die "on purpose\n" };
get '/slow'   => sub { sleep(query_parameters->get('s') // 1); "slow done\n" };

__PACKAGE__->to_app;
